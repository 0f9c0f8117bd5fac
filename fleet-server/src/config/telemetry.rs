//! The section `telemetry`.

use super::Section;

/// How long what devices send is kept, and how finely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Events, metrics, logs, and windows that count towards nothing, in days.
    pub retention_days: u32,
    /// Windows, in days.
    pub windows_days: u32,
    /// Age from which windows are added up by the hour, in days.
    pub hourly_after_days: u32,
    /// Age from which they are added up by the day, in days.
    pub daily_after_days: u32,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            retention_days: 30,
            windows_days: 400,
            hourly_after_days: 7,
            daily_after_days: 60,
        }
    }
}

pub(super) fn read(mut section: Section<'_>) -> TelemetrySettings {
    let default = TelemetrySettings::default();
    let telemetry = TelemetrySettings {
        retention_days: section.unsigned("retention_days", 1, 3650, default.retention_days),
        windows_days: section.unsigned("windows_days", 1, 3650, default.windows_days),
        hourly_after_days: section.unsigned(
            "hourly_after_days",
            1,
            3650,
            default.hourly_after_days,
        ),
        daily_after_days: section.unsigned("daily_after_days", 1, 3650, default.daily_after_days),
    };
    if telemetry.daily_after_days < telemetry.hourly_after_days {
        let problem = format!(
            "expected at least hourly_after_days ({}), got {}",
            telemetry.hourly_after_days, telemetry.daily_after_days
        );
        section.bad("daily_after_days", problem);
    }
    section.finish();
    telemetry
}
