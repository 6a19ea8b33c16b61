//! Keeps records on disk until they are sent, in another order than they were read. The file has no name and disappears with the process.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use crate::sink::resend::Record;

/// The position of a record in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    at: u64,
    len: u32,
}

/// A temporary file of records.
#[derive(Debug)]
pub(crate) struct Spool {
    file: BufWriter<File>,
    end: u64,
    scratch: Vec<u8>,
}

impl Spool {
    /// # Errors
    /// Returns an error if the temporary file cannot be created.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { file: BufWriter::new(tempfile::tempfile()?), end: 0, scratch: Vec::new() })
    }

    /// # Errors
    /// Returns an error if the disk is full.
    pub(crate) fn push(&mut self, record: &Record) -> io::Result<Place> {
        self.scratch.clear();
        encode(record, &mut self.scratch);
        self.file.write_all(&self.scratch)?;
        let place = Place { at: self.end, len: self.scratch.len() as u32 };
        self.end += self.scratch.len() as u64;
        Ok(place)
    }

    /// # Errors
    /// Returns an error if the file cannot be read.
    pub(crate) fn read(&mut self, place: Place) -> io::Result<Record> {
        self.file.flush()?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(place.at))?;
        self.scratch.resize(place.len as usize, 0);
        file.read_exact(&mut self.scratch)?;
        // Go back to the end, where the next record is written.
        file.seek(SeekFrom::Start(self.end))?;
        decode(&self.scratch).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

fn encode(record: &Record, out: &mut Vec<u8>) {
    let mut bytes = |bytes: Option<&[u8]>| {
        // The length -1 means none, as in Kafka.
        let len = bytes.map_or(-1, |bytes| bytes.len() as i64);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(bytes.unwrap_or_default());
    };
    bytes(record.timestamp.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    bytes(record.key.as_deref());
    bytes(record.value.as_deref());
    for (name, value) in &record.headers {
        bytes(Some(name.as_bytes()));
        bytes(value.as_deref());
    }
}

fn decode(mut text: &[u8]) -> Option<Record> {
    fn bytes(text: &mut &[u8]) -> Option<Option<Vec<u8>>> {
        let (len, rest) = text.split_first_chunk::<8>()?;
        *text = rest;
        let Ok(len) = usize::try_from(i64::from_be_bytes(*len)) else { return Some(None) };
        let (bytes, rest) = text.split_at_checked(len)?;
        *text = rest;
        Some(Some(bytes.to_vec()))
    }
    let timestamp = bytes(&mut text)?.and_then(|bytes| Some(i64::from_be_bytes(bytes.try_into().ok()?)));
    let mut record = Record { timestamp, key: bytes(&mut text)?, value: bytes(&mut text)?, headers: Vec::new() };
    while !text.is_empty() {
        let name = String::from_utf8(bytes(&mut text)??).ok()?;
        record.headers.push((name, bytes(&mut text)?));
    }
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_byte_for_byte_in_any_order() {
        let full = Record {
            key: Some(b"k\0".to_vec()),
            value: Some(vec![0xff; 3]),
            headers: vec![("a".to_owned(), None), ("a".to_owned(), Some(Vec::new())), ("é".to_owned(), Some(vec![0]))],
            timestamp: Some(-1),
        };
        let records = [full, Record::default(), Record { value: Some(Vec::new()), ..Record::default() }];
        let mut spool = Spool::new().expect("a temporary file");
        let places: Vec<_> = records.iter().map(|record| spool.push(record).expect("room")).collect();
        for index in [2, 0, 1] {
            assert_eq!(spool.read(places[index]).expect("a record"), records[index]);
            let again = spool.push(&records[0]).expect("room");
            assert_eq!(spool.read(again).expect("a record"), records[0]);
        }
    }
}
