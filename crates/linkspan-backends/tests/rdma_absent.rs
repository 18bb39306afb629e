//! A machine without RDMA: the program starts, and says what is missing when it is asked for.

use linkspan_backends::rdma::{DeviceConfig, DeviceProvider, ProviderError};

#[test]
fn what_is_missing_is_said() {
    match DeviceProvider::new(DeviceConfig::default()) {
        Ok(_) => eprintln!("SKIP: this machine has RDMA"),
        Err(ProviderError::Library(error)) => {
            assert!(error.to_string().contains("Debian package"), "{error}");
        }
        // The kernel has none.
        Err(error) => assert!(matches!(error, ProviderError::System(_)), "{error}"),
    }
}
