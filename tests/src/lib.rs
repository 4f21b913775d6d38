//! System test harness.
