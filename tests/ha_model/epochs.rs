//! Epochs, and values that each of them has one of.

/// The highest epoch of the largest world.
pub const EPOCHS_MAX: usize = 4;

/// One value for each epoch; index 0 is not used.
pub type PerEpoch<T> = [T; EPOCHS_MAX + 1];

/// The highest epoch that has a value, 0 where none has.
pub fn highest_of<T>(values: &[Option<T>]) -> usize {
    values.iter().rposition(Option::is_some).unwrap_or(0)
}
