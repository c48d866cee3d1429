//! What people write to each other, as far as compression and pages can tell.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

/// Words of the Latin kind.
const LATIN_WORDS: usize = 4000;
/// Words of the Chinese kind.
const CJK_WORDS: usize = 2000;

/// A vocabulary with frequent and rare words.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    latin: Vec<String>,
    cjk: Vec<String>,
}

impl Vocabulary {
    pub(crate) fn new(random: &mut SmallRng) -> Self {
        Self {
            latin: (1..=LATIN_WORDS).map(|rank| latin_word(random, rank)).collect(),
            cjk: (0..CJK_WORDS).map(|_| cjk_word(random)).collect(),
        }
    }

    /// A message of 4 to about 400 characters, most of them short; one in eight is Chinese.
    pub(crate) fn message(&self, random: &mut SmallRng) -> String {
        let bell = random.random::<f64>() + random.random::<f64>() + random.random::<f64>() - 1.5;
        let length = 4 + (3.3 + 2.0 * bell).exp().min(390.0) as usize;
        let chinese = random.random_ratio(1, 8);
        let words = if chinese { &self.cjk } else { &self.latin };
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            if !chinese && !text.is_empty() {
                text.push_str([" ", " ", " ", " ", ", ", ". "].choose(random).expect("it is not empty"));
            }
            // Zipf: the k-th word is about k times rarer than the first.
            let rank = (words.len() as f64).powf(random.random::<f64>()) as usize - 1;
            text.push_str(&words[rank]);
        }
        text
    }
}

/// The frequent words are the short ones.
fn latin_word(random: &mut SmallRng, rank: usize) -> String {
    let syllables = 1 + ((rank as f64 + 1.0).ln() / 3.2 + random.random::<f64>() * 1.4) as usize;
    let mut word = String::new();
    for _ in 0..syllables.min(5) {
        word.push(pick(random, b"bcdfghjklmnprstvwz"));
        word.push(pick(random, b"aeiouaeio"));
        if random.random_bool(0.25) {
            word.push(pick(random, b"nrstlm"));
        }
    }
    word
}

fn cjk_word(random: &mut SmallRng) -> String {
    let length = random.random_range(1..=2);
    let character = |random: &mut SmallRng| 0x4e00 + (random.random::<f64>().powi(2) * 4000.0) as u32;
    (0..length).filter_map(|_| char::from_u32(character(random))).collect()
}

fn pick(random: &mut SmallRng, letters: &[u8]) -> char {
    char::from(*letters.choose(random).expect("there are letters"))
}
