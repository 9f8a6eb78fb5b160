//! Netlink messages and attributes as bytes: a writer that appends to one buffer, and readers that
//! borrow from one. They know lengths and alignment and nothing of what the attributes mean.
//!
//! Reading never fails and never panics: what does not fit its bounds ends the iteration, and what a
//! reader does not know it skips.

/// Message and attribute lengths are padded to this (`NLMSG_ALIGNTO`, `NLA_ALIGNTO`).
const ALIGN: usize = 4;
/// Size of `struct nlmsghdr`.
const MESSAGE_HEADER: usize = 16;
/// Size of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: all but the two flag bits.
const KIND_MASK: u16 = 0x3fff;

/// Flags and kinds of `linux/netlink.h`.
pub(super) mod flag {
    pub const REQUEST: u16 = 0x1;
    pub const ACK: u16 = 0x4;
    pub const ECHO: u16 = 0x8;
    pub const DUMP_INTERRUPTED: u16 = 0x10;
    pub const DUMP: u16 = 0x300;
    pub const EXCLUSIVE: u16 = 0x200;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
}
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
/// In an error message: the rest of the request is not repeated, attributes follow.
const NLM_F_CAPPED: u16 = 0x100;
/// In an error message: attributes follow.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The head of a message, less its length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
}

/// Appends messages and attributes to a buffer.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends a message: `fixed` is the header of its family, `body` writes its attributes.
    pub fn message(&mut self, head: Head, fixed: &[u8], body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&head.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(head.flags | flag::REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&head.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]); // the kernel fills in the port
        self.bytes.extend_from_slice(fixed);
        self.pad();
        body(self);
        let length = u32::try_from(self.bytes.len() - start).expect("a message is far smaller than 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Sets a flag of a message already written, which begins at `start`.
    pub fn add_flags(&mut self, start: usize, flags: u16) {
        let place = start + 6..start + 8; // nlmsg_flags
        let old = u16::from_ne_bytes([self.bytes[place.start], self.bytes[place.start + 1]]);
        self.bytes[place].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attribute_header(kind | NESTED, 0);
        body(self);
        let length = attribute_length(self.bytes.len() - start);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute_header(kind, value.len());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A string, with its NUL.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.attribute_header(kind, value.len() + 1);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// A number in the order of this machine, as generic netlink and routing have them.
    pub fn ne16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub fn ne32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn attribute_header(&mut self, kind: u16, payload: usize) {
        self.bytes.extend_from_slice(&attribute_length(ATTRIBUTE_HEADER + payload).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

/// Everything we write (a rule is under 2 KiB) is far below an attribute's 64 KiB.
fn attribute_length(length: usize) -> u16 {
    u16::try_from(length).expect("an attribute is smaller than 64 KiB")
}

/// A message in a received datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub head: Head,
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after a family header of `fixed` bytes.
    pub fn attributes(&self, fixed: usize) -> Attributes<'a> {
        Attributes(self.payload.get(fixed.next_multiple_of(ALIGN)..).unwrap_or_default())
    }

    /// The error number an error or done message carries, positive; 0 is success.
    pub fn error_number(&self) -> i32 {
        self.payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b).saturating_neg())
    }

    /// What the kernel says beside the number (`NLMSGERR_ATTR_MSG`).
    pub fn error_text(&self) -> Option<String> {
        if self.head.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let request: usize = u32::from_ne_bytes(*self.payload.get(4..)?.first_chunk()?).try_into().ok()?;
        let repeated = if self.head.flags & NLM_F_CAPPED == 0 { request } else { MESSAGE_HEADER };
        let start = repeated.checked_add(4)?.checked_next_multiple_of(ALIGN)?;
        let text = Attributes(self.payload.get(start..)?).find(|a| a.kind == NLMSGERR_ATTR_MSG)?;
        text.text().map(str::to_owned)
    }
}

/// The messages of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Messages<'a>(pub &'a [u8]);

impl Messages<'_> {
    /// The port that the next message is about: of a notification, whose change it tells.
    pub fn port(&self) -> Option<u32> {
        let header = self.0.first_chunk::<MESSAGE_HEADER>()?;
        Some(u32::from_ne_bytes([header[12], header[13], header[14], header[15]]))
    }
}

#[expect(clippy::copy_iterator, reason = "a borrowed slice: its copy is a second reader from the same place")]
impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<MESSAGE_HEADER>()?;
        let length = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).ok()?;
        let payload = self.0.get(MESSAGE_HEADER..length)?;
        let head = Head {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
        };
        self.0 = self.0.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(Message { head, payload })
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attribute<'a> {
    pub kind: u16,
    pub data: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub fn nested(&self) -> Attributes<'a> {
        Attributes(self.data)
    }

    /// The string up to its NUL; `None` if it is not UTF-8.
    pub fn text(&self) -> Option<&'a str> {
        c_string(self.data)
    }

    pub fn ne16(&self) -> Option<u16> {
        self.data.try_into().ok().map(u16::from_ne_bytes)
    }

    pub fn ne32(&self) -> Option<u32> {
        self.data.try_into().ok().map(u32::from_ne_bytes)
    }

    pub fn be32(&self) -> Option<u32> {
        self.data.try_into().ok().map(u32::from_be_bytes)
    }

    pub fn be64(&self) -> Option<u64> {
        self.data.try_into().ok().map(u64::from_be_bytes)
    }
}

/// The text before the first NUL of a field, or all of it.
pub(super) fn c_string(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field.split(|&b| b == 0).next()?).ok()
}

/// The attributes of a message or of a nested attribute.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of a kind.
    pub fn get(mut self, kind: u16) -> Option<Attribute<'a>> {
        self.find(|a| a.kind == kind)
    }
}

#[expect(clippy::copy_iterator, reason = "a borrowed slice: its copy is a second reader from the same place")]
impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<ATTRIBUTE_HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let data = self.0.get(ATTRIBUTE_HEADER..length)?;
        let kind = u16::from_ne_bytes([header[2], header[3]]) & KIND_MASK;
        self.0 = self.0.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(Attribute { kind, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut w = Writer::default();
        w.message(Head { kind: 7, flags: flag::ACK, sequence: 9 }, &[2, 0, 0, 0], |w| {
            w.text(1, "nat");
            w.nest(2, |w| w.be32(3, 0x0102_0304));
        });
        w.bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = sample();
        let message = Messages(&bytes).next().unwrap();
        assert_eq!((message.head.kind, message.head.sequence), (7, 9));
        assert_eq!(message.head.flags, flag::ACK | flag::REQUEST);
        let attributes = message.attributes(4);
        assert_eq!(attributes.get(1).and_then(|a| a.text()), Some("nat"));
        let inner = attributes.get(2).unwrap().nested().get(3);
        assert_eq!(inner.and_then(|a| a.be32()), Some(0x0102_0304));
    }

    #[test]
    fn cut_off_bytes_end_the_reading() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            assert_eq!(Messages(&bytes[..cut]).count(), 0, "cut at {cut}");
            let found = Attributes(&bytes[20..cut.max(20)]).count();
            assert!(found <= 2);
        }
        assert_eq!(Attributes(&[3, 0, 1, 0]).count(), 0, "a length below the header's");
        assert_eq!(Messages(&[0; 16]).count(), 0);
    }

    #[test]
    fn the_kernels_words_are_found() {
        let mut payload = Vec::from((-22i32).to_ne_bytes());
        payload.extend(16u32.to_ne_bytes());
        payload.extend([0; 12]);
        let mut w = Writer::default();
        w.text(NLMSGERR_ATTR_MSG, "no such thing");
        payload.extend(w.as_bytes());
        let head = Head { kind: NLMSG_ERROR, flags: NLM_F_CAPPED | NLM_F_ACK_TLVS, sequence: 0 };
        let message = Message { head, payload: &payload };
        assert_eq!(message.error_number(), 22);
        assert_eq!(message.error_text().as_deref(), Some("no such thing"));
        assert_eq!(Message { head, payload: &payload[..10] }.error_text(), None);
    }
}
