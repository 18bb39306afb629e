//! What a program here hears of what a server says.

use fuser::Errno;
use linkspan_smb2::status;

use super::super::error::Error;

/// The number of an error for a status.
pub(super) fn of_status(said: u32) -> Errno {
    match said {
        status::NO_SUCH_FILE
        | status::OBJECT_NAME_NOT_FOUND
        | status::OBJECT_PATH_NOT_FOUND
        | status::DELETE_PENDING => Errno::ENOENT,
        status::OBJECT_NAME_COLLISION => Errno::EEXIST,
        status::OBJECT_NAME_INVALID | status::INVALID_PARAMETER => Errno::EINVAL,
        status::ACCESS_DENIED | status::CANNOT_DELETE => Errno::EACCES,
        status::PRIVILEGE_NOT_HELD => Errno::EPERM,
        status::MEDIA_WRITE_PROTECTED => Errno::EROFS,
        status::SHARING_VIOLATION => Errno::EBUSY,
        status::DISK_FULL => Errno::ENOSPC,
        status::QUOTA_EXCEEDED => Errno::EDQUOT,
        status::FILE_IS_A_DIRECTORY => Errno::EISDIR,
        status::NOT_A_DIRECTORY => Errno::ENOTDIR,
        status::DIRECTORY_NOT_EMPTY => Errno::ENOTEMPTY,
        status::LOCK_NOT_GRANTED | status::FILE_LOCK_CONFLICT => Errno::EAGAIN,
        status::INSUFFICIENT_RESOURCES => Errno::ENOMEM,
        status::NOT_SUPPORTED | status::INVALID_DEVICE_REQUEST | status::INVALID_INFO_CLASS => {
            Errno::EOPNOTSUPP
        }
        status::STOPPED_ON_SYMLINK => Errno::ELOOP,
        status::TOO_MANY_OPENED_FILES => Errno::EMFILE,
        _ => Errno::EIO,
    }
}

/// The number of an error for one of ours.
pub(super) fn of(error: &Error) -> Errno {
    match error {
        Error::Refused { status, .. } => of_status(*status),
        Error::LogOn { .. } | Error::KerberosOnly => Errno::EACCES,
        Error::Room { .. } => Errno::ENOMEM,
        error if error.is_unreachable() => Errno::ETIMEDOUT,
        _ => Errno::EIO,
    }
}
