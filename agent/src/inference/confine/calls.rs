//! System calls, by seccomp.

use super::{ConfineError, Enforced};

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
pub(super) fn forbid() -> Result<Enforced, ConfineError> {
    filter::forbid()
}

/// No filter can be made for this machine.
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
pub(super) fn forbid() -> Result<Enforced, ConfineError> {
    Ok(Enforced::No)
}

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
mod filter {
    use super::{ConfineError, Enforced};
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

    /// What a worker with open sockets never does. Each fails with EPERM, so that whatever tries says so.
    const FORBIDDEN: [i64; 27] = [
        // The network.
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        // Does all of the above behind a filter's back.
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        // Other programs, other processes.
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        // The kernel's larger doors.
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_open_by_handle_at,
        libc::SYS_personality,
    ];

    pub(super) fn forbid() -> Result<Enforced, ConfineError> {
        let refused = |e: &dyn std::fmt::Display| ConfineError::new("seccomp", e);
        let arch = std::env::consts::ARCH
            .try_into()
            .map_err(|e: seccompiler::BackendError| refused(&e))?;
        // No condition on arguments: the call alone is enough.
        let rules = FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
        let eperm = u32::try_from(libc::EPERM).unwrap_or_default();
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(eperm),
            arch,
        )
        .map_err(|e| refused(&e))?;
        let program: BpfProgram = filter
            .try_into()
            .map_err(|e: seccompiler::BackendError| refused(&e))?;
        match apply_filter_all_threads(&program) {
            Ok(()) => Ok(Enforced::Fully),
            Err(error) if has_none(&error) => Ok(Enforced::No),
            Err(error) => Err(refused(&error)),
        }
    }

    /// Whether the kernel was built without filters.
    fn has_none(error: &seccompiler::Error) -> bool {
        use seccompiler::Error::{Prctl, Seccomp};
        let (Prctl(source) | Seccomp(source)) = error else {
            return false;
        };
        matches!(
            source.raw_os_error(),
            Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP)
        )
    }
}
