//! Protocol bytes to events and back; handles.
