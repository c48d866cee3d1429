//! From the configuration to a store.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use holdfast_store::{Bucket, Directory, Place, Service, SftpStore, Store};

use crate::config::{BucketSettings, Location, RepositorySettings};
use crate::failure::{CommandError, Doing as _, Failure};

/// Does not touch the place itself.
pub(crate) fn open(settings: &RepositorySettings) -> Result<Arc<dyn Store>, Failure> {
    Ok(match &settings.location {
        Location::Directory(path) => Arc::new(Directory::new(path)),
        Location::Sftp(place) => Arc::new(SftpStore::new(place.clone())),
        Location::Bucket(bucket) => {
            let opened = bucket_place(bucket).and_then(|place| Ok(Bucket::open(&place)?));
            Arc::new(opened.doing(|| format!("could not use the place of the repository `{}`", settings.name))?)
        }
    })
}

fn bucket_place(settings: &BucketSettings) -> Result<Place, Failure> {
    let BucketSettings { address, endpoint, region, path_style, ca_file, credentials_file } = settings.clone();
    let credentials = match &credentials_file {
        Some(path) => credentials(path, address.service)?,
        None => BTreeMap::new(),
    };
    Ok(Place { address, endpoint, region, path_style, ca_file, credentials })
}

fn credentials(path: &Path, service: Service) -> Result<BTreeMap<String, String>, Failure> {
    const OTHERS: u32 = 0o007;
    let mode = path.metadata().map_err(CommandError::file("read", path))?.mode();
    if mode & OTHERS != 0 {
        return Err(CommandError::usage(
            format!("everybody can read or change the credentials in {}", path.display()),
            format!("`chmod o= {}`", path.display()),
        )
        .into());
    }
    let text = std::fs::read_to_string(path).map_err(CommandError::file("read", path))?;
    let known = service.credentials();
    let hint = || format!("It is a TOML file of texts: {}.", known.join(", "));
    // Without what TOML says of it, which may quote a secret.
    let found: BTreeMap<String, String> = toml::from_str(&text)
        .map_err(|_| CommandError::usage(format!("{} cannot be read as credentials", path.display()), hint()))?;
    match found.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => {
            let problem = format!("`{key}` in {} is no credential of {}", path.display(), service.scheme());
            Err(CommandError::usage(problem, hint()).into())
        }
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn credentials_are_for_few_eyes_and_say_nothing_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s3.toml");
        let read = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            credentials(&path, Service::S3).map_err(|error| error.to_string())
        };
        let good = "access_key_id = \"a\"\nsecret_access_key = \"hush\"\n";
        assert_eq!(read(good, 0o640).unwrap().len(), 2);
        assert!(read(good, 0o644).unwrap_err().contains("everybody can read"));
        assert!(read("account_key = \"hush\"", 0o600).unwrap_err().contains("`account_key`"));
        let error = read("access_key_id = hush", 0o600).unwrap_err();
        assert!(error.contains("cannot be read") && !error.contains("hush"), "{error}");
    }
}
