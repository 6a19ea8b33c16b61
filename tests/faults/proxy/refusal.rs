//! Answers to Produce requests in which the broker says an error that it did not say
//! (<https://kafka.apache.org/protocol#The_Messages_Produce>). What it has appended stays.

/// From this version on lengths are varints, and fields may be tagged.
const FLEXIBLE: i16 = 9;

/// Puts the error into each partition of an answer to a Produce request of that version.
pub(super) fn refuse(answer: &mut [u8], version: i16, error: i16) {
    for at in error_codes(answer, version) {
        answer[at..at + 2].copy_from_slice(&error.to_be_bytes());
    }
}

/// Where the error codes are.
fn error_codes(answer: &[u8], version: i16) -> Vec<usize> {
    // Length and number of the request.
    let mut reader = Reader { bytes: answer, at: 8, flexible: version >= FLEXIBLE };
    let mut found = Vec::new();
    reader.tags();
    for _ in 0..reader.length() {
        let name = reader.text_length();
        reader.at += name;
        for _ in 0..reader.length() {
            // The partition's number.
            reader.at += 4;
            found.push(reader.at);
            // The code, the offset, and the times and offsets that came with versions 2 and 5.
            reader.at += 2 + 8 + if version >= 2 { 8 } else { 0 } + if version >= 5 { 8 } else { 0 };
            if version >= 8 {
                for _ in 0..reader.length() {
                    reader.at += 4;
                    let message = reader.text_length();
                    reader.at += message;
                    reader.tags();
                }
                let message = reader.text_length();
                reader.at += message;
            }
            reader.tags();
        }
        reader.tags();
    }
    assert!(!found.is_empty(), "an answer without partitions: {answer:?}");
    found
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    flexible: bool,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.bytes[self.at..self.at + N].try_into().expect("an answer that is complete");
        self.at += N;
        taken
    }

    fn varint(&mut self) -> usize {
        let (mut value, mut shift) = (0, 0);
        loop {
            let [byte] = self.take();
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
            shift += 7;
        }
    }

    /// How many elements an array has.
    fn length(&mut self) -> usize {
        if self.flexible {
            return self.varint().saturating_sub(1);
        }
        usize::try_from(i32::from_be_bytes(self.take())).unwrap_or_default()
    }

    /// How long a text is, which may be null.
    fn text_length(&mut self) -> usize {
        if self.flexible {
            return self.varint().saturating_sub(1);
        }
        usize::try_from(i16::from_be_bytes(self.take())).unwrap_or_default()
    }

    fn tags(&mut self) {
        if !self.flexible {
            return;
        }
        for _ in 0..self.varint() {
            self.varint();
            let length = self.varint();
            self.at += length;
        }
    }
}
