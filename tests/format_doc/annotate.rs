//! The encoding of structs as `docs/format.md` spells it out, written a second time: it shares no code with the crate
//! that the product uses, and says with each value which field it is.

use std::fmt::{Display, Error};

use serde::{Serialize, Serializer, ser};

use crate::lines::Lines;

/// The bytes of `value`, a line for each field.
pub fn annotate<T: Serialize>(value: &T) -> Lines {
    let mut out = Annotator::default();
    value.serialize(&mut out).expect("only what the format has");
    out.lines
}

#[derive(Default)]
struct Annotator {
    lines: Lines,
    path: String,
}

impl Annotator {
    fn number(&mut self, bytes: &[u8], kind: &str, value: impl Display) -> Result<(), Error> {
        self.lines.put(bytes, format!("{}: {kind} = {value}", self.path));
        Ok(())
    }

    fn tag(&mut self, variant: u32, name: &str) {
        self.lines.put(&variant.to_le_bytes(), format!("{}: {name}", self.path));
    }

    fn length(&mut self, length: usize) {
        self.lines.put(&(length as u64).to_le_bytes(), format!("{}: length = {length}", self.path));
    }

    fn elements(&mut self) -> Elements<'_> {
        let first_line = self.lines.len();
        Elements { out: self, at: 0, first_line }
    }

    fn within<T: Serialize + ?Sized>(&mut self, step: &str, value: &T) -> Result<(), Error> {
        let length = self.path.len();
        let step = if length == 0 { step.trim_start_matches('.') } else { step };
        self.path.push_str(step);
        value.serialize(&mut *self)?;
        self.path.truncate(length);
        Ok(())
    }
}

struct Elements<'a> {
    out: &'a mut Annotator,
    at: usize,
    first_line: usize,
}

impl Elements<'_> {
    fn next<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let step = format!(".{}", self.at);
        self.at += 1;
        self.out.within(&step, value)
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Error> {
        self.out.within(&format!(".{name}"), value)
    }
}

impl<'a> Serializer for &'a mut Annotator {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Elements<'a>;
    type SerializeTuple = Elements<'a>;
    type SerializeTupleStruct = Elements<'a>;
    type SerializeTupleVariant = Elements<'a>;
    type SerializeMap = ser::Impossible<(), Error>;
    type SerializeStruct = Elements<'a>;
    type SerializeStructVariant = Elements<'a>;

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.number(&[value.into()], "bool", value)
    }
    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.number(&[value], "u8", value)
    }
    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.number(&value.to_le_bytes(), "u16", value)
    }
    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.number(&value.to_le_bytes(), "u32", value)
    }
    fn serialize_u64(self, value: u64) -> Result<(), Error> {
        self.number(&value.to_le_bytes(), "u64", value)
    }
    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.length(value.len());
        self.lines.put(value.as_bytes(), format!("{}: {value:?}", self.path));
        Ok(())
    }
    fn serialize_none(self) -> Result<(), Error> {
        self.lines.put(&[0], format!("{}: none", self.path));
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.lines.put(&[1], format!("{}: some", self.path));
        value.serialize(self)
    }
    fn serialize_unit_variant(self, _: &'static str, index: u32, name: &'static str) -> Result<(), Error> {
        self.tag(index, name);
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.tag(index, name);
        value.serialize(self)
    }
    fn serialize_seq(self, length: Option<usize>) -> Result<Elements<'a>, Error> {
        self.length(length.ok_or(Error)?);
        Ok(self.elements())
    }
    fn serialize_tuple(self, _: usize) -> Result<Elements<'a>, Error> {
        Ok(self.elements())
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Elements<'a>, Error> {
        Ok(self.elements())
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Elements<'a>, Error> {
        self.tag(index, name);
        Ok(self.elements())
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Elements<'a>, Error> {
        Ok(self.elements())
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Elements<'a>, Error> {
        self.tag(index, name);
        Ok(self.elements())
    }

    // The format has none of these.
    fn serialize_i8(self, _: i8) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_i16(self, _: i16) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_i32(self, _: i32) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_i64(self, _: i64) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_f32(self, _: f32) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_f64(self, _: f64) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_char(self, _: char) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_bytes(self, _: &[u8]) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_unit(self) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        Err(Error)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Error> {
        Err(Error)
    }
}

impl ser::SerializeSeq for Elements<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.next(value)
    }
    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

impl ser::SerializeTuple for Elements<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.next(value)
    }
    /// An array of bytes is one line.
    fn end(self) -> Result<(), Error> {
        let comment = format!("{}: {} bytes", self.out.path, self.at);
        self.out.lines.join_single_bytes(self.first_line, comment);
        Ok(())
    }
}

impl ser::SerializeTupleStruct for Elements<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.next(value)
    }
    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

impl ser::SerializeTupleVariant for Elements<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.next(value)
    }
    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

impl ser::SerializeStruct for Elements<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        self.field(name, value)
    }
    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

impl ser::SerializeStructVariant for Elements<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        self.field(name, value)
    }
    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}
