//! What a client is told when its login has succeeded: ParameterStatus, BackendKeyData, ReadyForQuery, in one write.

use crate::backend::connection::Parameters;
use crate::cancel::CancelKey;
use crate::wire::encode;
use bytes::BytesMut;

/// The messages that end a login (PostgreSQL documentation, "Start-up").
pub(super) fn welcome(parameters: &Parameters, key: &CancelKey) -> BytesMut {
    let mut message = BytesMut::new();
    for (name, value) in parameters.iter() {
        encode::parameter_status(&mut message, name.as_bytes(), value.as_bytes());
    }
    encode::backend_key_data(&mut message, key.client.0, key.secret());
    encode::ready_for_query(&mut message, b'I');
    message
}
