//! Generates payloads like those of an order service: names, ids, hashes, amounts. They compress like real JSON. Like Postgres they have a
//! space after `:` and `,`, so that their length equals their length in the table (the order of the keys may differ).

use std::fmt::Write;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// The number of different payloads of a run, which the rows use in turn. A compressor sees batches of at most 1 MB, so with payloads of
/// 500 B it never meets the same one twice.
pub const SAMPLES: usize = 10_000;

/// The size of the smallest payload, in bytes.
pub const SMALLEST: usize = 64;

/// The seed, always the same, so that runs can be compared.
const SEED: u64 = 0x6f75_7462_6f78;

const FIRST: &[&str] = &[
    "Amélie", "Bjarne", "Chiara", "Dmitri", "Elena", "Farouk", "Grace", "Hiroshi", "Ingrid", "João", "Kwame", "Lena",
    "Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Stefan", "Tomoko", "Uma", "Viktor", "Wanda", "Yusuf",
];
const LAST: &[&str] = &[
    "Andersen", "Berger", "Costa", "Dubois", "Eriksson", "Fischer", "Greco", "Haddad", "Ivanova", "Jansen", "Kowalski",
    "Larsen", "Moreau", "Nakamura", "Okafor", "Petrov", "Quinn", "Rossi", "Silva", "Tanaka", "Ueda", "Varga", "Weber",
    "Zhang",
];
const CITY: &[&str] = &[
    "Aarhus",
    "Bologna",
    "Coimbra",
    "Dresden",
    "Espoo",
    "Ghent",
    "Kraków",
    "Lyon",
    "Malmö",
    "Nantes",
    "Porto",
    "Rotterdam",
    "Sofia",
    "Tartu",
    "Utrecht",
    "Vilnius",
];
const GOODS: &[&str] = &[
    "Desk lamp",
    "Filter coffee 1 kg",
    "Garden chair",
    "Headphones",
    "Ink cartridge",
    "Kettle",
    "Notebook A5",
    "Olive oil 5 l",
    "Phone case",
    "Rain jacket",
    "Screwdriver set",
    "Trail shoes",
    "USB-C cable 2 m",
    "Wall clock",
];
const WORDS: &[&str] = &[
    "please",
    "leave",
    "the",
    "parcel",
    "with",
    "a",
    "neighbour",
    "before",
    "noon",
    "ring",
    "twice",
    "gift",
    "wrapped",
    "fragile",
    "invoice",
    "by",
    "mail",
    "second",
    "floor",
    "entrance",
    "from",
    "courtyard",
    "do",
    "not",
    "bend",
    "call",
    "first",
];

/// Returns `count` payloads of `bytes` bytes each.
pub fn samples(count: usize, bytes: usize) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(SEED);
    (0..count).map(|_| payload(&mut rng, bytes)).collect()
}

/// Returns one JSON object of exactly `bytes` bytes, at least [`SMALLEST`].
fn payload(rng: &mut StdRng, bytes: usize) -> String {
    let bytes = bytes.max(SMALLEST);
    let mut text = format!("{{\"orderId\": \"{}\"", hex(rng, 16));
    for member in [customer(rng), money(rng), address(rng), signature(rng)] {
        push_if_it_fits(&mut text, &member, bytes);
    }
    let mut items: Vec<String> = Vec::new();
    while text.len() + items.iter().map(|item| item.len() + 2).sum::<usize>() + 160 < bytes {
        items.push(item(rng));
    }
    if !items.is_empty() {
        push_if_it_fits(&mut text, &format!("\"items\": [{}]", items.join(", ")), bytes);
    }
    text.push_str(", \"note\": \"");
    fill_with_words(rng, &mut text, bytes - 2);
    text.push_str("\"}");
    text
}

/// Appends the member if room remains for the note and the closing brace.
fn push_if_it_fits(text: &mut String, member: &str, bytes: usize) {
    if text.len() + 2 + member.len() + 16 <= bytes {
        text.push_str(", ");
        text.push_str(member);
    }
}

fn customer(rng: &mut StdRng) -> String {
    let (first, last) = (one_of(rng, FIRST), one_of(rng, LAST));
    let (id, domain) = (rng.random_range(10_000..9_999_999), rng.random_range(1..400));
    let mail = format!("{}.{}@mail{domain}.example", first.to_lowercase(), last.to_lowercase());
    format!("\"customer\": {{\"id\": {id}, \"name\": \"{first} {last}\", \"email\": \"{mail}\"}}")
}

fn money(rng: &mut StdRng) -> String {
    let (total, tax) = (rng.random_range(100..500_000), rng.random_range(10..50_000));
    format!("\"total\": {}, \"tax\": {}, \"currency\": \"EUR\"", amount(total), amount(tax))
}

fn address(rng: &mut StdRng) -> String {
    let (number, post_code) = (rng.random_range(1..250), rng.random_range(10_000..99_999));
    format!(
        "\"shipTo\": {{\"street\": \"{} Street {number}\", \"city\": \"{}\", \"postCode\": \"{post_code}\"}}",
        one_of(rng, LAST),
        one_of(rng, CITY)
    )
}

fn signature(rng: &mut StdRng) -> String {
    format!("\"traceId\": \"{}\", \"checksum\": \"{}\"", hex(rng, 16), hex(rng, 20))
}

fn item(rng: &mut StdRng) -> String {
    let (sku, quantity, price) =
        (rng.random_range(100_000..999_999), rng.random_range(1..9), rng.random_range(99..60_000));
    format!(
        "{{\"sku\": \"AB-{sku}\", \"name\": \"{}\", \"quantity\": {quantity}, \"price\": {}}}",
        one_of(rng, GOODS),
        amount(price)
    )
}

fn amount(cents: u32) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

fn hex(rng: &mut StdRng, bytes: usize) -> String {
    (0..bytes).fold(String::with_capacity(bytes * 2), |mut text, _| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{:02x}", rng.random::<u8>());
        text
    })
}

fn one_of<'w>(rng: &mut StdRng, words: &[&'w str]) -> &'w str {
    words.choose(rng).copied().unwrap_or_default()
}

fn fill_with_words(rng: &mut StdRng, text: &mut String, bytes: usize) {
    while text.len() < bytes {
        text.push_str(one_of(rng, WORDS));
        text.push(' ');
    }
    text.truncate(bytes);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_payload_is_json_of_exactly_the_bytes_asked_for() {
        for bytes in [SMALLEST, 100, 137, 250, 500, 4000] {
            for payload in samples(50, bytes) {
                assert_eq!(payload.len(), bytes, "{payload}");
                let parsed: serde_json::Value = serde_json::from_str(&payload).unwrap();
                assert!(parsed.is_object());
            }
        }
    }

    #[test]
    fn payloads_are_different_and_the_same_in_every_run() {
        let payloads = samples(2000, 500);
        let mut distinct = payloads.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), payloads.len());
        assert_eq!(payloads, samples(2000, 500));
    }

    #[test]
    fn payloads_compress_like_json_does() {
        let text = samples(200, 500).concat();
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        let share = encoder.finish().unwrap().len() as f64 / text.len() as f64;
        assert!((0.25..0.60).contains(&share), "compressed to {:.0} %", share * 100.0);
    }
}
