//! Who can open the repository: age identities and recipients.
//!
//! A writer needs recipients only. Standard `age` opens a key object with an identity file, without Holdfast.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::str::FromStr;

use age::secrecy::{ExposeSecret as _, SecretString};
use holdfast_format::EpochKey;
use holdfast_types::{EpochId, RepositoryId};
use serde::{Deserialize, Serialize};

/// An identity or recipient cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    #[error("`{0}` is not an age recipient (expected age1…)")]
    NotARecipient(String),
    #[error("the identity file holds no age identity (expected AGE-SECRET-KEY-1…)")]
    NotAnIdentity,
    #[error("the identity file is protected by a passphrase, and none was given")]
    PassphraseNeeded,
    #[error("the passphrase does not open the identity file")]
    WrongPassphrase,
    #[error("age could not seal: {0}")]
    Seal(String),
}

/// The public half of an identity: new keys are sealed to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recipient(String);

impl FromStr for Recipient {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        age::x25519::Recipient::from_str(text)
            .map(|recipient| Self(recipient.to_string()))
            .map_err(|_| IdentityError::NotARecipient(text.to_owned()))
    }
}

impl TryFrom<String> for Recipient {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Recipient> for String {
    fn from(recipient: Recipient) -> Self {
        recipient.0
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A fresh identity, as it is written to a file.
pub struct NewIdentity {
    pub recipient: Recipient,
    /// The content of the identity file: text, or an age file if a passphrase protects it.
    pub file: Vec<u8>,
}

impl fmt::Debug for NewIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewIdentity").field("recipient", &self.recipient).finish_non_exhaustive()
    }
}

impl NewIdentity {
    pub fn generate(passphrase: Option<String>) -> Result<Self, IdentityError> {
        let identity = age::x25519::Identity::generate();
        let recipient = Recipient(identity.to_public().to_string());
        let text = format!(
            "# Holdfast recovery identity. Whoever has it can read the backups; without it nobody can.\n\
             # public key: {recipient}\n{}\n",
            identity.to_string().expose_secret()
        );
        let file = match passphrase {
            None => text.into_bytes(),
            Some(passphrase) => {
                seal(age::Encryptor::with_user_passphrase(SecretString::from(passphrase)), text.as_bytes())?
            }
        };
        Ok(Self { recipient, file })
    }
}

fn seal(encryptor: age::Encryptor, plain: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let mut sealed = Vec::new();
    let outcome = encryptor.wrap_output(&mut sealed).and_then(|mut writer| {
        writer.write_all(plain)?;
        writer.finish()
    });
    outcome.map_err(|error| IdentityError::Seal(format!("{error:?}")))?;
    Ok(sealed)
}

/// The secret halves that a reader holds.
#[derive(Default)]
pub struct Identities {
    identities: Vec<Box<dyn age::Identity + Send + Sync>>,
    recipients: Vec<String>,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("recipients", &self.recipients).finish_non_exhaustive()
    }
}

impl Identities {
    /// Adds those of an identity file. `passphrase` is asked for only where the file is protected by one.
    pub fn add_file(&mut self, file: &[u8], passphrase: impl FnOnce() -> Option<String>) -> Result<(), IdentityError> {
        let text = if file.starts_with(b"age-encryption.org/v1") {
            let passphrase = SecretString::from(passphrase().ok_or(IdentityError::PassphraseNeeded)?);
            let identity = age::scrypt::Identity::new(passphrase);
            open(file, std::iter::once(&identity as &dyn age::Identity)).map_err(|error| match error {
                age::DecryptError::Io(_) | age::DecryptError::InvalidHeader => IdentityError::NotAnIdentity,
                _ => IdentityError::WrongPassphrase,
            })?
        } else {
            file.to_vec()
        };
        let parsed = age::IdentityFile::from_buffer(text.as_slice()).map_err(|_| IdentityError::NotAnIdentity)?;
        let mut recipients = Vec::new();
        parsed.write_recipients_file(&mut recipients).map_err(|_| IdentityError::NotAnIdentity)?;
        self.recipients.extend(String::from_utf8_lossy(&recipients).lines().map(str::to_owned));
        self.identities.extend(parsed.into_identities().map_err(|_| IdentityError::NotAnIdentity)?);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.identities.is_empty()
    }

    /// The public halves of these identities.
    pub fn recipients(&self) -> &[String] {
        &self.recipients
    }

    fn iter(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.identities.iter().map(|identity| &**identity as &dyn age::Identity)
    }
}

fn open<'a>(
    sealed: &[u8],
    identities: impl Iterator<Item = &'a dyn age::Identity>,
) -> Result<Vec<u8>, age::DecryptError> {
    let mut plain = Vec::new();
    // A key object is a few hundred bytes; a huge one is no key.
    age::Decryptor::new_buffered(sealed)?.decrypt(identities)?.take(65_536).read_to_end(&mut plain)?;
    Ok(plain)
}

const KEY_HEADING: &str = "holdfast epoch key 1";

/// The content of a key object.
pub(crate) fn seal_epoch_key(
    repository: RepositoryId,
    key: &EpochKey,
    recipients: &[Recipient],
) -> Result<Vec<u8>, IdentityError> {
    let recipients = recipients
        .iter()
        .map(|recipient| {
            age::x25519::Recipient::from_str(&recipient.0)
                .map_err(|_| IdentityError::NotARecipient(recipient.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as _))
        .map_err(|error| IdentityError::Seal(format!("{error:?}")))?;
    let secret: String = key.secret().iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!("{KEY_HEADING}\nrepository {repository}\nepoch {}\nkey {secret}\n", key.id);
    seal(encryptor, text.as_bytes())
}

/// Why a key object gave no key.
pub(crate) enum OpenKeyError {
    /// None of the identities is among its recipients.
    NoMatch,
    Damaged(String),
}

pub(crate) fn open_epoch_key(
    repository: RepositoryId,
    epoch: EpochId,
    sealed: &[u8],
    identities: &Identities,
) -> Result<EpochKey, OpenKeyError> {
    let plain = open(sealed, identities.iter()).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => OpenKeyError::NoMatch,
        error => OpenKeyError::Damaged(why_not_decrypted(&error).to_owned()),
    })?;
    let text = String::from_utf8(plain).map_err(|_| OpenKeyError::Damaged("it is not text".to_owned()))?;
    // Recipients are public, so anybody can seal a key file: it has to say what it is for.
    let prefix = format!("{KEY_HEADING}\nrepository {repository}\nepoch {epoch}\nkey ");
    let hex = text.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix('\n'));
    let hex = hex.ok_or_else(|| OpenKeyError::Damaged("it is the key of something else".to_owned()))?;
    // A pack id has the same shape as a key: 32 bytes in hexadecimal.
    let key: holdfast_types::PackId =
        hex.parse().map_err(|_| OpenKeyError::Damaged("the key in it is no key".to_owned()))?;
    let key = EpochKey::new(*key.as_bytes());
    if key.id == epoch { Ok(key) } else { Err(OpenKeyError::Damaged("it is the key of another epoch".to_owned())) }
}

/// In our words: the library looks its own up in a translation, and panics where it finds none.
const fn why_not_decrypted(error: &age::DecryptError) -> &'static str {
    use age::DecryptError as Error;
    match error {
        Error::InvalidHeader => "its header is no age header",
        Error::InvalidMac => "its header was changed: its authentication code is wrong",
        Error::UnknownFormat => "it is no age file, or one of a newer version",
        Error::ExcessiveWork { .. } => "it asks for more work than a passphrase needs",
        Error::Io(_) => "it ends too early",
        _ => "it cannot be decrypted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_for_its_recipients_and_says_what_it_is_for() {
        let (alice, bob) = (NewIdentity::generate(None).unwrap(), NewIdentity::generate(None).unwrap());
        let repository = RepositoryId::new([1; 16]);
        let key = EpochKey::new([9; 32]);
        let epoch = key.id;
        let sealed = seal_epoch_key(repository, &key, std::slice::from_ref(&alice.recipient)).unwrap();
        let identities = |file: &[u8]| {
            let mut identities = Identities::default();
            identities.add_file(file, || None).unwrap();
            identities
        };
        let opened = open_epoch_key(repository, epoch, &sealed, &identities(&alice.file)).ok().unwrap();
        assert_eq!(opened.secret(), key.secret());
        let other = open_epoch_key(repository, epoch, &sealed, &identities(&bob.file));
        assert!(matches!(other, Err(OpenKeyError::NoMatch)));
        let moved = open_epoch_key(repository, EpochId::new([3; 16]), &sealed, &identities(&alice.file));
        assert!(matches!(moved, Err(OpenKeyError::Damaged(_))));
        // Recipients are public: somebody seals a key of his own and calls it that of our epoch.
        let mut forged = EpochKey::new([7; 32]);
        forged.id = epoch;
        let forged = seal_epoch_key(repository, &forged, std::slice::from_ref(&alice.recipient)).unwrap();
        let forged = open_epoch_key(repository, epoch, &forged, &identities(&alice.file));
        assert!(matches!(forged, Err(OpenKeyError::Damaged(_))));
    }

    #[test]
    fn a_passphrase_protects_an_identity_file() {
        let identity = NewIdentity::generate(Some("correct horse".to_owned())).unwrap();
        let mut identities = Identities::default();
        let refused = identities.add_file(&identity.file, || None).unwrap_err();
        assert!(matches!(refused, IdentityError::PassphraseNeeded));
        let refused = identities.add_file(&identity.file, || Some("wrong".to_owned())).unwrap_err();
        assert!(matches!(refused, IdentityError::WrongPassphrase));
        identities.add_file(&identity.file, || Some("correct horse".to_owned())).unwrap();
        assert_eq!(identities.recipients(), [identity.recipient.to_string()]);
        assert!(matches!(identities.add_file(b"nonsense", || None), Err(IdentityError::NotAnIdentity)));
    }
}
