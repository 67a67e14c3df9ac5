//! Against an independent client: postgres-protocol's.

use super::*;
use crate::redacted::Redacted;
use crate::tls::accept::testing::Certificate;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use ring::digest;

const PASSWORD: &str = "pen\u{ad}cil \u{2168} é";

fn verifier() -> Verifier {
    Verifier::from_password(&Redacted::new(PASSWORD.into()))
}

fn exchange(
    server: &Server,
    mechanism: Mechanism,
    password: &str,
    binding: ChannelBinding,
) -> Result<(), ScramError> {
    let mut client = ScramSha256::new(password.as_bytes(), binding);
    let (server_first, exchange) = server.begin(mechanism, client.message(), &verifier())?;
    client.update(server_first.as_bytes()).unwrap();
    let server_final = exchange.finish(client.message())?;
    client
        .finish(server_final.as_bytes())
        .expect("the server proves itself, too");
    Ok(())
}

fn binding(bytes: &[u8]) -> ChannelBinding {
    ChannelBinding::tls_server_end_point(bytes.to_vec())
}

#[test]
fn without_tls_the_right_password_is_proved_and_no_other() {
    let server = Server::new(None);
    assert_eq!(server.mechanisms(), ["SCRAM-SHA-256"]);
    let plain = Mechanism::Sha256;
    assert_eq!(
        exchange(&server, plain, PASSWORD, ChannelBinding::unsupported()),
        Ok(())
    );
    assert_eq!(
        exchange(&server, plain, PASSWORD, ChannelBinding::unrequested()),
        Ok(())
    );
    // the same after SASLprep
    assert_eq!(
        exchange(&server, plain, "pencil IX é", ChannelBinding::unsupported()),
        Ok(())
    );
    for wrong in ["", "pencil", "pencil IX e"] {
        assert_eq!(
            exchange(&server, plain, wrong, ChannelBinding::unsupported()),
            Err(ScramError::WrongPassword)
        );
    }
}

#[test]
fn channel_binding_ties_the_proof_to_our_certificate() {
    let sha256: &digest::Algorithm = &digest::SHA256;
    let cases = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, sha256),
        (&rcgen::PKCS_ECDSA_P384_SHA384, &digest::SHA384),
    ];
    for (algorithm, hash) in cases {
        let certificate = Certificate::new(algorithm);
        let server = Server::new(Some(certificate.acceptor().leaf()));
        assert_eq!(server.mechanisms(), ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
        let right = digest::digest(hash, &certificate.der);
        let plus = Mechanism::Sha256Plus;
        assert_eq!(
            exchange(&server, plus, PASSWORD, binding(right.as_ref())),
            Ok(())
        );
        assert_eq!(
            exchange(&server, plus, "wrong", binding(right.as_ref())),
            Err(ScramError::WrongPassword)
        );
        for wrong in [&[][..], &[0; 32], &right.as_ref()[1..]] {
            assert_eq!(
                exchange(&server, plus, PASSWORD, binding(wrong)),
                Err(ScramError::BindingMismatch)
            );
        }
    }
}

#[test]
fn flag_and_mechanism_must_agree() {
    let certificate = Certificate::new(&rcgen::PKCS_ECDSA_P256_SHA256);
    let bound = Server::new(Some(certificate.acceptor().leaf()));
    let unbound = Server::new(None);
    let (plain, plus) = (Mechanism::Sha256, Mechanism::Sha256Plus);
    let (n, y) = (ChannelBinding::unsupported, ChannelBinding::unrequested);
    assert_eq!(exchange(&bound, plain, PASSWORD, n()), Ok(()));
    assert_eq!(
        exchange(&bound, plain, PASSWORD, y()),
        Err(ScramError::BindingNegotiation)
    );
    assert_eq!(
        exchange(&bound, plus, PASSWORD, n()),
        Err(ScramError::Malformed)
    );
    assert_eq!(
        exchange(&bound, plus, PASSWORD, y()),
        Err(ScramError::Malformed)
    );
    assert_eq!(
        exchange(&bound, plain, PASSWORD, binding(b"x")),
        Err(ScramError::Malformed)
    );
    assert_eq!(
        exchange(&unbound, plain, PASSWORD, binding(b"x")),
        Err(ScramError::Malformed)
    );
    let other = b"p=tls-unique,,n=,r=abc";
    assert_eq!(
        bound.begin(plus, other, &verifier()).unwrap_err(),
        ScramError::Malformed
    );
}

#[test]
fn only_offered_mechanisms_can_be_chosen() {
    let certificate = Certificate::new(&rcgen::PKCS_ECDSA_P256_SHA256);
    let bound = Server::new(Some(certificate.acceptor().leaf()));
    assert_eq!(
        bound.choose(b"SCRAM-SHA-256-PLUS"),
        Ok(Mechanism::Sha256Plus)
    );
    assert_eq!(bound.choose(b"SCRAM-SHA-256"), Ok(Mechanism::Sha256));
    let unbound = Server::new(None);
    assert_eq!(unbound.choose(b"SCRAM-SHA-256"), Ok(Mechanism::Sha256));
    for name in [
        &b"SCRAM-SHA-256-PLUS"[..],
        b"",
        b"SCRAM-SHA-25",
        b"\xff",
        b"OAUTHBEARER",
    ] {
        assert_eq!(unbound.choose(name), Err(ScramError::UnknownMechanism));
    }
}

#[test]
fn a_certificate_without_a_binding_hash_only_loses_the_binding() {
    let ed25519 = Certificate::new(&rcgen::PKCS_ED25519);
    let server = Server::new(Some(ed25519.acceptor().leaf()));
    assert_eq!(server.mechanisms(), ["SCRAM-SHA-256"]);
    assert_eq!(
        Server::new(Some(b"garbage, not a certificate")).mechanisms(),
        ["SCRAM-SHA-256"]
    );
}

#[test]
fn garbage_is_malformed_wherever_it_comes() {
    let server = Server::new(None);
    let firsts: &[&[u8]] = &[
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"n,,n=",
        b"n,,n=x",
        b"n,a=x,n=,r=x",
        b"n,,m=1,n=,r=x",
        b"n\xff",
        b"z,,n=,r=x",
    ];
    for first in firsts {
        let result = server.begin(Mechanism::Sha256, first, &verifier());
        assert_eq!(result.unwrap_err(), ScramError::Malformed, "{first:?}");
    }
    let finals: &[&[u8]] = &[
        b"",
        b"c=biws",
        b"c=biws,r=x",
        b",p=",
        b"c=biws,p=AAAA",
        b"c=biws,r=x,p=",
        b"\xff,p=AAAA",
    ];
    for last in finals {
        let (_, exchange) = server
            .begin(Mechanism::Sha256, b"n,,n=,r=abc", &verifier())
            .unwrap();
        assert_eq!(
            exchange.finish(last).unwrap_err(),
            ScramError::Malformed,
            "{last:?}"
        );
    }
}

#[test]
fn no_damage_to_the_last_message_is_a_proof() {
    let server = Server::new(None);
    let verifier = verifier();
    let prove = |damage: &dyn Fn(&mut Vec<u8>)| {
        let mut client = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
        let (first, exchange) = server
            .begin(Mechanism::Sha256, client.message(), &verifier)
            .unwrap();
        client.update(first.as_bytes()).unwrap();
        let mut message = client.message().to_vec();
        damage(&mut message);
        exchange.finish(&message)
    };
    let len = {
        let len = std::cell::Cell::new(0);
        prove(&|message| len.set(message.len())).unwrap();
        len.get()
    };
    for at in (0..len).step_by(4) {
        assert!(
            prove(&|message| message[at] ^= 1).is_err(),
            "byte {at} changed"
        );
        assert!(
            prove(&|message| message.truncate(at)).is_err(),
            "cut to {at}"
        );
    }
}

#[test]
fn nothing_printed_gives_a_key_away() {
    let (_, exchange) = Server::new(None)
        .begin(Mechanism::Sha256, b"n,,n=,r=abc", &verifier())
        .unwrap();
    assert!(format!("{exchange:?}").contains("REDACTED"));
}
