//! System calls, by seccomp.

use super::{ConfineError, Enforced};

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64"
))]
pub(super) fn forbid() -> Result<Enforced, ConfineError> {
    filter::forbid()
}

/// No filter can be made for this machine.
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64"
)))]
pub(super) fn forbid() -> Result<Enforced, ConfineError> {
    Ok(Enforced::No)
}

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64"
))]
mod filter {
    use super::{ConfineError, Enforced};
    use seccompiler::{BpfProgram, apply_filter_all_threads, sock_filter};

    /// What a worker with open sockets never does. Each fails with EPERM, so that whatever tries says so.
    const FORBIDDEN: [libc::c_long; 27] = [
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

    /// The calling convention that this program was built for, `AUDIT_ARCH_…` of linux/audit.h.
    const CONVENTION: u32 = if cfg!(target_arch = "x86_64") {
        0xC000_003E
    } else if cfg!(target_arch = "aarch64") {
        0xC000_00B7
    } else if cfg!(target_arch = "riscv64") {
        0xC000_00F3
    } else {
        // 32-bit ARM, little-endian.
        0x4000_0028
    };
    /// Numbers from here on are a convention of their own, x32, which says that it is x86-64's.
    const FOREIGN_FROM: u32 = 0x4000_0000;

    // Classic BPF (linux/bpf_common.h) over what the kernel says of a call (linux/seccomp.h).
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const NUMBER_AT: u32 = 0;
    const CONVENTION_AT: u32 = 4;

    /// Forbids these calls, every one whatever its arguments, and whatever comes by another convention.
    /// seccompiler's own compiler knows no 32-bit ARM.
    fn program(forbidden: &[u32]) -> Option<BpfProgram> {
        let step = |code, k| sock_filter {
            code,
            jt: 0,
            jf: 0,
            k,
        };
        // Over the calls behind and the line that allows.
        let to_refusal = |calls_behind: usize| u8::try_from(calls_behind + 1).ok();
        let eperm = u32::try_from(libc::EPERM).ok()?;
        let mut program = vec![
            step(LOAD, CONVENTION_AT),
            sock_filter {
                jt: 1,
                ..step(JUMP_IF_EQUAL, CONVENTION)
            },
            step(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
            step(LOAD, NUMBER_AT),
            sock_filter {
                jt: to_refusal(forbidden.len())?,
                ..step(JUMP_IF_AT_LEAST, FOREIGN_FROM)
            },
        ];
        for (at, call) in forbidden.iter().enumerate() {
            program.push(sock_filter {
                jt: to_refusal(forbidden.len() - at - 1)?,
                ..step(JUMP_IF_EQUAL, *call)
            });
        }
        program.push(step(RETURN, libc::SECCOMP_RET_ALLOW));
        program.push(step(RETURN, libc::SECCOMP_RET_ERRNO | eperm));
        Some(program)
    }

    pub(super) fn forbid() -> Result<Enforced, ConfineError> {
        let refused = |e: &dyn std::fmt::Display| ConfineError::new("seccomp", e);
        let numbers = FORBIDDEN.iter().map(|call| u32::try_from(*call).ok());
        let numbers: Option<Vec<u32>> = numbers.collect();
        let program = numbers.and_then(|numbers| program(&numbers));
        let program = program.ok_or_else(|| refused(&"the list of calls is no program"))?;
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

    #[cfg(test)]
    #[allow(clippy::unwrap_used, clippy::panic)]
    mod tests {
        use super::*;

        /// What the kernel's interpreter would return for a call.
        fn verdict(program: &[sock_filter], convention: u32, number: u32) -> u32 {
            let (mut at, mut loaded) = (0, 0);
            loop {
                let step = &program[at];
                at += 1;
                let taken = match step.code {
                    LOAD if step.k == NUMBER_AT => {
                        loaded = number;
                        continue;
                    }
                    LOAD => {
                        loaded = convention;
                        continue;
                    }
                    JUMP_IF_EQUAL => loaded == step.k,
                    JUMP_IF_AT_LEAST => loaded >= step.k,
                    RETURN => return step.k,
                    other => panic!("{other:#x}"),
                };
                at += usize::from(if taken { step.jt } else { step.jf });
            }
        }

        #[test]
        fn each_call_of_the_list_is_refused_and_no_other() {
            let listed = [7, 3, 400, 9];
            let program = program(&listed).unwrap();
            let refusal = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap();
            for number in 0..500 {
                let expected = match listed.contains(&number) {
                    true => refusal,
                    false => libc::SECCOMP_RET_ALLOW,
                };
                assert_eq!(verdict(&program, CONVENTION, number), expected, "{number}");
            }
            // ARM's own calls are numbered high, x32's higher.
            let arms_own = verdict(&program, CONVENTION, 0x000F_0005);
            assert_eq!(arms_own, libc::SECCOMP_RET_ALLOW);
            assert_eq!(verdict(&program, CONVENTION, FOREIGN_FROM | 1), refusal);
            assert_eq!(verdict(&program, CONVENTION, u32::MAX), refusal);
            let foreign = verdict(&program, CONVENTION ^ 1, 0);
            assert_eq!(foreign, libc::SECCOMP_RET_KILL_PROCESS);
        }

        #[test]
        fn a_list_too_long_to_jump_over_is_no_program() {
            assert!(program(&[1; 254]).is_some());
            assert!(program(&[1; 255]).is_none());
        }
    }
}
