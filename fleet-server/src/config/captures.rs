//! The section `capture`.

use super::Section;

/// How much of devices' sealed samples is stored, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureSettings {
    /// Of all devices together, in MiB.
    pub max_mib: u64,
    /// Of one device, in MiB.
    pub device_max_mib: u64,
    /// In days.
    pub retention_days: u32,
    /// How long the audit log is kept, in days.
    pub audit_days: u32,
}

impl Default for CaptureSettings {
    fn default() -> Self {
        Self {
            max_mib: 1024,
            device_max_mib: 64,
            retention_days: 30,
            audit_days: 730,
        }
    }
}

pub(super) fn read(mut section: Section<'_>) -> CaptureSettings {
    let default = CaptureSettings::default();
    let captures = CaptureSettings {
        max_mib: section.unsigned("max_mib", 1, 1 << 20, default.max_mib),
        device_max_mib: section.unsigned("device_max_mib", 1, 1 << 20, default.device_max_mib),
        retention_days: section.unsigned("retention_days", 1, 3650, default.retention_days),
        audit_days: section.unsigned("audit_days", 1, 36_500, default.audit_days),
    };
    section.finish();
    captures
}
