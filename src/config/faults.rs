//! What is wrong with a configuration: every fault of one run, each with its key path.

use std::fmt;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// The key path (`pool.max_connections`), the environment variable, or the file where no key is to blame.
    pub key: String,
    /// What is wrong, and what to do about it.
    pub text: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// Every fault found in one run, in the order of the reference configuration. `Display` writes one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFaults {
    faults: Vec<ConfigFault>,
}

impl ConfigFaults {
    /// The faults found; `None` if there are none.
    pub fn new(faults: Vec<ConfigFault>) -> Option<Self> {
        (!faults.is_empty()).then_some(Self { faults })
    }

    /// A single fault.
    pub fn one(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            faults: vec![ConfigFault {
                key: key.into(),
                text: text.into(),
            }],
        }
    }

    /// The faults.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigFault> {
        self.faults.iter()
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.faults.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFaults {}
