//! The data of options, decoded; pure. Source: proto.md, "Option types".

use bytes::Buf;

use super::proto::STRING_BYTES_MAX;

/// The data cannot be read as what the option asks for (NBD_REP_ERR_INVALID).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// NBD_OPT_INFO and NBD_OPT_GO.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InfoQuery<'a> {
    pub(super) name: &'a str,
    pub(super) info_types: Vec<u16>,
}

/// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MetaQuery<'a> {
    pub(super) name: &'a str,
    pub(super) queries: Vec<&'a str>,
}

pub(super) fn decode_info(mut data: &[u8]) -> Result<InfoQuery<'_>, Malformed> {
    let name = take_string(&mut data)?;
    let count = usize::from(data.try_get_u16().map_err(|_| Malformed)?);
    if data.len() != count * 2 {
        return Err(Malformed);
    }
    let info_types = data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    Ok(InfoQuery { name, info_types })
}

pub(super) fn decode_meta(mut data: &[u8]) -> Result<MetaQuery<'_>, Malformed> {
    let name = take_string(&mut data)?;
    let count = data.try_get_u32().map_err(|_| Malformed)?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(take_string(&mut data)?);
    }
    if data.is_empty() { Ok(MetaQuery { name, queries }) } else { Err(Malformed) }
}

/// A string as "Conventions" has it, without a length.
pub(super) fn decode_string(data: &[u8]) -> Result<&str, Malformed> {
    if data.len() > STRING_BYTES_MAX || data.contains(&0) {
        return Err(Malformed);
    }
    str::from_utf8(data).map_err(|_| Malformed)
}

/// A string behind its length of 32 bits.
fn take_string<'a>(data: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let length = data.try_get_u32().map_err(|_| Malformed)? as usize;
    let (string, rest) = data.split_at_checked(length).ok_or(Malformed)?;
    *data = rest;
    decode_string(string)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// "NBD_OPT_INFO and NBD_OPT_GO": length, name, count, types.
    #[test]
    fn info_is_name_and_types() {
        let data = b"\0\0\0\x03vol\0\x02\0\x01\0\x03";
        assert_eq!(decode_info(data), Ok(InfoQuery { name: "vol", info_types: vec![1, 3] }));
        assert_eq!(decode_info(b"\0\0\0\0\0\0"), Ok(InfoQuery { name: "", info_types: vec![] }));
    }

    /// "NBD_OPT_LIST_META_CONTEXT": length, name, count, and a length and string for each query.
    #[test]
    fn meta_is_name_and_queries() {
        let data = b"\0\0\0\x01v\0\0\0\x02\0\0\0\x05base:\0\0\0\x03x-a";
        assert_eq!(decode_meta(data), Ok(MetaQuery { name: "v", queries: vec!["base:", "x-a"] }));
        assert_eq!(decode_meta(b"\0\0\0\0\0\0\0\0"), Ok(MetaQuery { name: "", queries: vec![] }));
    }

    #[test]
    fn lengths_that_do_not_fit_are_malformed() {
        let long = [&[0, 0, 0x10, 1][..], &[b'a'; 4097], &[0, 0]].concat();
        let infos: [&[u8]; 8] = [
            b"",
            b"\0\0\0",
            b"\0\0\0\x04vol\0\0",
            b"\xff\xff\xff\xffvol\0\0",
            b"\0\0\0\x03vol\0\x01",
            b"\0\0\0\x03vol\0\0\0\0",
            b"\0\0\0\x03v\0l\0\0",
            &long,
        ];
        for data in infos {
            assert_eq!(decode_info(data), Err(Malformed), "{data:?}");
        }
        for data in [
            &b"\0\0\0\0"[..],
            b"\0\0\0\0\xff\xff\xff\xff",
            b"\0\0\0\0\0\0\0\0\0",
            b"\0\0\0\0\0\0\0\x01\0\0\0\x02x",
        ] {
            assert_eq!(decode_meta(data), Err(Malformed), "{data:?}");
        }
    }

    proptest! {
        #[test]
        fn any_data_is_decoded_or_malformed(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (decode_info(&data), decode_meta(&data), decode_string(&data));
        }
    }
}
