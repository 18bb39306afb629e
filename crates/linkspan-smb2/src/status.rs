//! What a server says of a request (NTSTATUS), as far as anything here depends on it or a
//! person should read it by name.

macro_rules! statuses {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        $(#[doc = $text] pub const $name: u32 = $code;)*

        /// All that are known by name, with what a person reads.
        pub const STATUSES: &[(u32, &str, &str)] = &[$(($code, stringify!($name), $text),)*];
    };
}

statuses! {
    SUCCESS = 0x0000_0000, "done";
    PENDING = 0x0000_0103, "it takes time";
    NOTIFY_ENUM_DIR = 0x0000_010C, "more has changed than can be said";
    BUFFER_OVERFLOW = 0x8000_0005, "there is more than was asked for";
    NO_MORE_FILES = 0x8000_0006, "there are no more files";
    STOPPED_ON_SYMLINK = 0x8000_002D, "a part of the path is a symbolic link";
    INVALID_INFO_CLASS = 0xC000_0003, "the server does not know this information";
    INVALID_HANDLE = 0xC000_0008, "the file is not open any more";
    INVALID_PARAMETER = 0xC000_000D, "the server does not take a parameter of the request";
    NO_SUCH_FILE = 0xC000_000F, "there is no such file";
    INVALID_DEVICE_REQUEST = 0xC000_0010, "the server cannot do this";
    END_OF_FILE = 0xC000_0011, "the file ends before that";
    MORE_PROCESSING_REQUIRED = 0xC000_0016, "the log-on goes on";
    ACCESS_DENIED = 0xC000_0022, "access is denied";
    BUFFER_TOO_SMALL = 0xC000_0023, "the answer is longer than was allowed";
    OBJECT_NAME_INVALID = 0xC000_0033, "the name cannot be one";
    OBJECT_NAME_NOT_FOUND = 0xC000_0034, "there is no such file";
    OBJECT_NAME_COLLISION = 0xC000_0035, "there is such a file already";
    OBJECT_PATH_NOT_FOUND = 0xC000_003A, "a folder of the path does not exist";
    DELETE_PENDING = 0xC000_0056, "the file is about to be removed";
    SHARING_VIOLATION = 0xC000_0043, "somebody else has the file open";
    QUOTA_EXCEEDED = 0xC000_0044, "the quota is used up";
    LOCK_NOT_GRANTED = 0xC000_0055, "somebody else has locked the range";
    FILE_LOCK_CONFLICT = 0xC000_0054, "somebody else has locked the range";
    PRIVILEGE_NOT_HELD = 0xC000_0061, "a privilege is missing";
    NO_SUCH_USER = 0xC000_0064, "there is no such user";
    WRONG_PASSWORD = 0xC000_006A, "the password is wrong";
    LOGON_FAILURE = 0xC000_006D, "user or password is wrong";
    ACCOUNT_RESTRICTION = 0xC000_006E, "the account may not log on like this";
    INVALID_LOGON_HOURS = 0xC000_006F, "the account may not log on at this time";
    PASSWORD_EXPIRED = 0xC000_0071, "the password has expired";
    ACCOUNT_DISABLED = 0xC000_0072, "the account is disabled";
    DISK_FULL = 0xC000_007F, "the disk is full";
    INSUFFICIENT_RESOURCES = 0xC000_009A, "the server has no room for this";
    MEDIA_WRITE_PROTECTED = 0xC000_00A2, "the share is read-only";
    FILE_IS_A_DIRECTORY = 0xC000_00BA, "it is a folder";
    NOT_SUPPORTED = 0xC000_00BB, "the server does not support this";
    NETWORK_NAME_DELETED = 0xC000_00C9, "the share is gone";
    BAD_NETWORK_NAME = 0xC000_00CC, "there is no such share";
    REQUEST_NOT_ACCEPTED = 0xC000_00D0, "the server takes no more requests";
    DIRECTORY_NOT_EMPTY = 0xC000_0101, "the folder is not empty";
    TOO_MANY_OPENED_FILES = 0xC000_011F, "the server has too many open files";
    CANNOT_DELETE = 0xC000_0121, "it is read-only, and cannot be removed";
    NOT_A_DIRECTORY = 0xC000_0103, "it is no folder";
    CANCELLED = 0xC000_0120, "it was cancelled";
    FILE_CLOSED = 0xC000_0128, "the file is not open any more";
    ACCOUNT_LOCKED_OUT = 0xC000_0234, "the account is locked after too many attempts";
    USER_SESSION_DELETED = 0xC000_0203, "the session is gone";
    FS_DRIVER_REQUIRED = 0xC000_019C, "the server has nobody who answers this";
    NETWORK_SESSION_EXPIRED = 0xC000_035C, "the session has expired";
    FILE_NOT_AVAILABLE = 0xC000_0467, "the file cannot be reached now";
}

/// Whether it is an error: the two highest bits say so.
#[must_use]
pub fn is_error(status: u32) -> bool {
    status >> 30 == 3
}

/// What a person reads; a number where nothing better is known.
#[must_use]
pub fn text(status: u32) -> &'static str {
    let known = STATUSES.iter().find(|row| row.0 == status);
    known.map_or("the server says an NTSTATUS that has no name here", |row| {
        row.2
    })
}
