//! Reads a profile of the files `credentials` and `config`, as the command line of AWS writes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::MskIamError;

/// What makes a profile one that needs more than its own text.
const UNSUPPORTED: [&str; 5] =
    ["source_profile", "credential_source", "credential_process", "sso_session", "sso_start_url"];

/// The values of a profile.
#[derive(Default)]
pub(super) struct Profile {
    values: BTreeMap<String, String>,
    /// Its name, for errors.
    pub(super) name: String,
}

impl Profile {
    /// Reads the profile that `AWS_PROFILE` names, else the one called `default`. The file of credentials is stronger. Missing files are
    /// empty ones.
    ///
    /// # Errors
    /// [`MskIamError::NoCredentials`] if a file cannot be read, or if `AWS_PROFILE` names a profile that is in neither file.
    pub(super) fn read(environment: &BTreeMap<String, String>) -> Result<Self, MskIamError> {
        let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        let given = variable("AWS_PROFILE");
        let name = given.map_or("default", String::as_str);
        let mut profile = Self { values: BTreeMap::new(), name: name.to_owned() };
        let mut found = false;
        for (file, given, section) in [
            ("config", variable("AWS_CONFIG_FILE"), format!("profile {name}")),
            ("credentials", variable("AWS_SHARED_CREDENTIALS_FILE"), name.to_owned()),
        ] {
            let home = || variable("HOME").map(|home| PathBuf::from(home).join(".aws").join(file));
            let Some(path) = given.map(PathBuf::from).or_else(home) else { continue };
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(MskIamError::NoCredentials(format!(
                        "the file {} cannot be read: {error}",
                        path.display()
                    )));
                }
            };
            let is_default = |found: &str| file == "config" && name == "default" && found == "default";
            let values = section_of(&text, |found| found == section || is_default(found));
            found |= values.is_some();
            profile.values.extend(values.unwrap_or_default());
        }
        match given {
            Some(name) if !found => {
                Err(MskIamError::NoCredentials(format!("no file of AWS has the profile {name:?} of AWS_PROFILE")))
            }
            _ => Ok(profile),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns a setting of the profile that this library does not follow.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        UNSUPPORTED.into_iter().find(|name| self.get(name).is_some())
    }
}

/// Returns the values of a section; `None` if the text does not have it.
fn section_of(text: &str, is_wanted: impl Fn(&str) -> bool) -> Option<BTreeMap<String, String>> {
    let (mut values, mut is_in, mut found) = (BTreeMap::new(), false, false);
    for line in text.lines() {
        // An indented line belongs to a nested setting, such as those of s3.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        if let Some(name) = line.trim().strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            is_in = is_wanted(name.trim());
            found |= is_in;
        } else if let (true, Some((name, value))) = (is_in, line.split_once('=')) {
            values.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found.then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_in_both_files_and_the_credentials_are_stronger() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
            directory.path().join(name).display().to_string()
        };
        let config = file(
            "config",
            "[default]\nregion = eu-west-1\n[profile shop]\nregion=eu-central-1\naws_access_key_id = OLD\ns3 =\n  addressing_style = path\n",
        );
        let credentials =
            file("credentials", "# ours\n[shop]\naws_access_key_id = AKID\naws_secret_access_key = a=b\n");
        let read = |profile: Option<&str>| {
            let files = [("AWS_CONFIG_FILE", &config), ("AWS_SHARED_CREDENTIALS_FILE", &credentials)];
            let mut given: BTreeMap<_, _> =
                files.iter().map(|(name, value)| ((*name).to_owned(), (*value).clone())).collect();
            given.extend(profile.map(|name| ("AWS_PROFILE".to_owned(), name.to_owned())));
            Profile::read(&given)
        };
        let shop = read(Some("shop")).unwrap();
        let of = |name| shop.get(name);
        assert_eq!((of("region"), of("aws_access_key_id")), (Some("eu-central-1"), Some("AKID")));
        assert_eq!((of("aws_secret_access_key"), of("addressing_style")), (Some("a=b"), None));
        assert_eq!(read(None).unwrap().get("region"), Some("eu-west-1"));
        assert!(read(Some("other")).err().unwrap().to_string().contains("\"other\""));
    }
}
