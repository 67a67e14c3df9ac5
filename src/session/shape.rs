//! What the server has made of a prepared text: the types of its parameters and the columns of its rows. The same text
//! has another shape once its tables have changed; then it is another statement. Pure: no I/O.

use bytes::{BufMut, Bytes, BytesMut};

/// As the server describes a statement.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Shape {
    /// Type OIDs of the parameters.
    pub parameters: Vec<u32>,
    /// Each column's name, type, size and modifier, as they stand in RowDescription; `None` without rows, or where they
    /// were too long to be read.
    pub columns: Option<Bytes>,
}

impl Shape {
    /// From a ParameterDescription's body.
    pub fn with_parameters(body: &[u8]) -> Self {
        let oids = body.get(2..).unwrap_or_default().chunks_exact(4);
        let oids = oids.map(|oid| u32::from_be_bytes(oid.try_into().unwrap_or_default()));
        Self {
            parameters: oids.collect(),
            columns: None,
        }
    }

    /// And a RowDescription's body. Which table a column is from is left out: the server does not compare that either
    /// (src/backend/access/common/tupdesc.c, `equalTupleDescs`).
    pub fn set_columns(&mut self, body: &[u8]) {
        let mut columns = BytesMut::with_capacity(body.len());
        let mut rest = body.get(2..).unwrap_or_default();
        while let Some(end) = rest.iter().position(|&byte| byte == 0) {
            // Table 4, column 2; type 4, size 2, modifier 4; format 2.
            let (Some(kinds), after) = (rest.get(end + 7..end + 17), rest.get(end + 19..)) else {
                break;
            };
            columns.put_slice(&rest[..=end]);
            columns.put_slice(kinds);
            rest = after.unwrap_or_default();
        }
        self.columns = Some(columns.freeze());
    }

    /// The body of a Parse, its text as in `body`, with these parameters' types.
    pub fn parse_body(&self, body: &[u8]) -> BytesMut {
        let text_len = body.iter().position(|&byte| byte == 0);
        let text_len = text_len.map_or(body.len(), |end| end + 1);
        let mut typed = BytesMut::from(&body[..text_len]);
        typed.put_u16(self.parameters.len() as u16); // as many as an u16 counted
        for oid in &self.parameters {
            typed.put_u32(*oid);
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, table: u32, kind: u32) -> Vec<u8> {
        let mut column = [name.as_bytes(), b"\0"].concat();
        column.extend(table.to_be_bytes());
        column.extend([0, 1]);
        column.extend(kind.to_be_bytes());
        column.extend([0, 4, 255, 255, 255, 255, 0, 0]);
        column
    }

    fn shape(columns: &[Vec<u8>]) -> Shape {
        let mut shape = Shape::default();
        shape.set_columns(&[&[0, columns.len() as u8][..], &columns.concat()].concat());
        shape
    }

    #[test]
    fn columns_count_but_not_the_tables_they_are_from() {
        let one = shape(&[column("a", 1, 23), column("b", 1, 25)]);
        assert_eq!(one, shape(&[column("a", 2, 23), column("b", 3, 25)]));
        for other in [
            shape(&[column("a", 1, 23)]),
            shape(&[column("a", 1, 20), column("b", 1, 25)]),
            shape(&[column("c", 1, 23), column("b", 1, 25)]),
            Shape::default(),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(one.columns.as_ref().unwrap().len(), 2 * 12);
        shape(&[vec![b'x']]); // cut short: no panic
    }

    #[test]
    fn a_parse_names_the_types_once_they_are_known() {
        let shape = Shape::with_parameters(&[0, 2, 0, 0, 0, 23, 0, 0, 0, 25]);
        assert_eq!(shape.parameters, [23, 25]);
        let body = shape.parse_body(b"select $1, $2\0\0\0");
        assert_eq!(body, &b"select $1, $2\0\0\x02\0\0\0\x17\0\0\0\x19"[..]);
    }
}
