//! Changes of a topic's or group's attributes, as tools write them: `+key=value,-key`.

use std::collections::BTreeMap;

/// An attribute text that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} changes no attribute: write +key=value to set one, -key to remove one, with commas between"
)]
pub struct AttributeError {
    /// The part that is wrong.
    text: String,
}

/// Applies `text` to `attributes`; on an error nothing is changed.
pub fn change(attributes: &mut BTreeMap<String, String>, text: &str) -> Result<(), AttributeError> {
    let mut changed = attributes.clone();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = || AttributeError { text: part.to_owned() };
        if let Some(rest) = part.strip_prefix('+') {
            let (key, value) = rest.split_once('=').ok_or_else(wrong)?;
            if key.trim().is_empty() {
                return Err(wrong());
            }
            changed.insert(key.trim().to_owned(), value.trim().to_owned());
        } else {
            let key = part.strip_prefix('-').filter(|key| !key.trim().is_empty()).ok_or_else(wrong)?;
            changed.remove(key.trim());
        }
    }
    *attributes = changed;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_set_and_removed() {
        let mut attributes = BTreeMap::from([("old".to_owned(), "1".to_owned())]);
        change(&mut attributes, "+message.type=FIFO, +x=a=b,-old,-unknown").unwrap();
        let expected = [("message.type", "FIFO"), ("x", "a=b")];
        assert_eq!(attributes, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        change(&mut attributes, "").unwrap();
        assert_eq!(attributes.len(), 2);
    }

    #[test]
    fn a_wrong_part_changes_nothing() {
        for wrong in ["+a", "a=b", "-", "+=v", "+ok=1,bad"] {
            let mut attributes = BTreeMap::new();
            assert!(change(&mut attributes, wrong).is_err(), "{wrong}");
            assert!(attributes.is_empty(), "{wrong}");
        }
    }
}
