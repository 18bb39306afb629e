//! The Linux calls that Linkspan needs: sockets with descriptors, mappings, epoll, eventfds.
