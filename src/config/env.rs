//! Keys given by environment: `PGSLUICE__SECTION__KEY=value`. The environment wins over the file.
//!
//! A value is text here; what type it should have is known only to who reads the key (`file::Section`).

use std::collections::BTreeMap;

use super::faults::ConfigFault;

/// What every variable of ours begins with. Two underscores: a Kubernetes service named `pgsluice` makes the
/// cluster set `PGSLUICE_PORT` and the like, which are not ours.
pub const PREFIX: &str = "PGSLUICE__";

/// One value from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EnvValue {
    /// The variable it came from.
    pub variable: String,
    /// Its text.
    pub text: String,
}

/// Section name → key → value.
pub(super) type Overrides = BTreeMap<String, BTreeMap<String, EnvValue>>;

/// Our variables in this process's environment. Bytes that are not UTF-8 are replaced, so that a value spoiled
/// like this is refused where it is read, and variables that are not ours can't stop the proxy.
pub fn process() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into(),
                value.to_string_lossy().into(),
            )
        })
        .filter(|(name, _): &(String, String)| name.starts_with(PREFIX))
}

/// Sorts variables by section and key; names that can't be a key are faults.
pub(super) fn collect(
    variables: impl Iterator<Item = (String, String)>,
) -> (Overrides, Vec<ConfigFault>) {
    let mut overrides = Overrides::new();
    let mut faults = Vec::new();
    for (variable, text) in variables {
        let Some(name) = variable.strip_prefix(PREFIX) else {
            continue;
        };
        match name.split_once("__") {
            Some((section, key)) if is_name(section) && is_name(key) && !key.contains("__") => {
                let value = EnvValue {
                    variable: variable.clone(),
                    text,
                };
                overrides
                    .entry(section.to_lowercase())
                    .or_default()
                    .insert(key.to_lowercase(), value);
            }
            _ => faults.push(ConfigFault {
                key: variable,
                text: "is not a key; write PGSLUICE__SECTION__KEY, such as PGSLUICE__POOL__MODE"
                    .into(),
            }),
        }
    }
    (overrides, faults)
}

/// Upper case only: two spellings of one variable must not race.
fn is_name(part: &str) -> bool {
    !part.is_empty()
        && part
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_become_sections_and_keys() {
        type Expected = Result<Option<(&'static str, &'static str)>, ()>;
        let cases: &[(&str, Expected)] = &[
            ("PGSLUICE__POOL__MODE", Ok(Some(("pool", "mode")))),
            (
                "PGSLUICE__POOL__MAX_CONNECTIONS",
                Ok(Some(("pool", "max_connections"))),
            ),
            ("PGSLUICE_PORT", Ok(None)),
            ("PATH", Ok(None)),
            ("PGSLUICE__POOL", Err(())),
            ("PGSLUICE__", Err(())),
            ("PGSLUICE__POOL__", Err(())),
            ("PGSLUICE____MODE", Err(())),
            ("PGSLUICE__POOL__RULES__0", Err(())),
            ("PGSLUICE__pool__mode", Err(())),
        ];
        for (variable, expected) in cases {
            let (overrides, faults) =
                collect([(variable.to_string(), "x".to_string())].into_iter());
            match expected {
                Ok(Some((section, key))) => assert_eq!(overrides[*section][*key].text, "x"),
                Ok(None) => assert!(overrides.is_empty() && faults.is_empty(), "{variable}"),
                Err(()) => assert_eq!((overrides.len(), faults[0].key.as_str()), (0, *variable)),
            }
        }
    }
}
