//! What clients answer to an authentication request: PasswordMessage, SASLInitialResponse, SASLResponse. All three have
//! tag `p`; which one a body is follows from what was asked.

/// The tag.
pub const TAG: u8 = b'p';

/// The longest body taken from someone who has not proved who they are.
pub const BODY_LEN_MAX: usize = 10_000;

/// A body that is not what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed authentication response")]
pub struct Malformed;

/// The first message of a SASL exchange.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    /// The mechanism the client chose.
    pub mechanism: &'a [u8],
    /// Its first data; a client may also wait to be asked for it.
    pub data: Option<&'a [u8]>,
}

/// The password in a PasswordMessage (or its hash, for md5): the bytes before the final NUL.
pub fn password(body: &[u8]) -> Result<&[u8], Malformed> {
    match body.split_last() {
        Some((0, password)) if !password.contains(&0) => Ok(password),
        _ => Err(Malformed),
    }
}

impl<'a> SaslInitialResponse<'a> {
    /// Reads a body: a name ended by NUL, a length (-1: no data), the data.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let end = body.iter().position(|&byte| byte == 0).ok_or(Malformed)?;
        let (mechanism, rest) = body.split_at(end);
        let (len, data) = rest[1..].split_first_chunk().ok_or(Malformed)?;
        match (i32::from_be_bytes(*len), data.len()) {
            (-1, 0) => Ok(Self {
                mechanism,
                data: None,
            }),
            (len, actual) if usize::try_from(len) == Ok(actual) => Ok(Self {
                mechanism,
                data: Some(data),
            }),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_end_with_their_only_nul() {
        type Case = (&'static [u8], Result<&'static [u8], Malformed>);
        let cases: &[Case] = &[
            (b"secret\0", Ok(b"secret")),
            (b"\xff\xfe\0", Ok(b"\xff\xfe")),
            (b"\0", Ok(b"")),
            (b"", Err(Malformed)),
            (b"secret", Err(Malformed)),
            (b"sec\0ret\0", Err(Malformed)),
            (b"secret\0\0", Err(Malformed)),
        ];
        for (body, expected) in cases {
            assert_eq!(&password(body), expected, "{body:?}");
        }
    }

    #[test]
    fn initial_responses_are_read_only_when_their_length_is_true() {
        type Parts<'a> = Result<(&'a [u8], Option<&'a [u8]>), Malformed>;
        let cases: &[(&[u8], Parts<'_>)] = &[
            (b"SCRAM\0\0\0\0\x03n,,", Ok((b"SCRAM", Some(b"n,,")))),
            (b"SCRAM\0\0\0\0\0", Ok((b"SCRAM", Some(b"")))),
            (b"SCRAM\0\xff\xff\xff\xff", Ok((b"SCRAM", None))),
            (b"\0\0\0\0\0", Ok((b"", Some(b"")))),
            (b"SCRAM\0\xff\xff\xff\xffx", Err(Malformed)),
            (b"SCRAM\0\xff\xff\xff\xfe", Err(Malformed)),
            (b"SCRAM\0\0\0\0\x04n,,", Err(Malformed)),
            (b"SCRAM\0\0\0\0\x02n,,", Err(Malformed)),
            (b"SCRAM\0\x7f\xff\xff\xffn,,", Err(Malformed)),
            (b"SCRAM\0\0\0\0", Err(Malformed)),
            (b"SCRAM", Err(Malformed)),
            (b"", Err(Malformed)),
        ];
        for (body, expected) in cases {
            let parts = SaslInitialResponse::parse(body).map(|r| (r.mechanism, r.data));
            assert_eq!(&parts, expected, "{body:?}");
        }
    }
}
