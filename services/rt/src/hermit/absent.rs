//! What a node does not have: files, sockets, mappings made at run time, semaphores, entropy. It answers
//! `-ENOSYS`.

use core::ffi::{c_char, c_void};

use hermit_abi::{
    ENOSYS, addrinfo, dirent64, iovec, nfds_t, pollfd, sem_t, sockaddr, socklen_t, stat, timespec,
};

use super::same_as_declared;

macro_rules! absent {
    ($($name:ident = $declared:ident($($argument:ty),*) -> $result:ty;)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($(_: $argument),*) -> $result {
                -(ENOSYS as $result)
            }
        )*
        same_as_declared! {
            $($name = $declared: unsafe extern "C" fn($($argument),*) -> $result;)*
        }
    };
}

absent! {
    sys_get_errno = get_errno() -> i32;
    sys_errno = errno() -> i32;
    sys_mmap = mmap(usize, u32, &mut *mut u8) -> i32;
    sys_munmap = munmap(*mut u8, usize) -> i32;
    sys_mprotect = mprotect(*mut u8, usize, u32) -> i32;
    sys_sem_init = sem_init(*mut sem_t, i32, u32) -> i32;
    sys_sem_destroy = sem_destroy(*mut sem_t) -> i32;
    sys_sem_post = sem_post(*mut sem_t) -> i32;
    sys_sem_trywait = sem_trywait(*mut sem_t) -> i32;
    sys_sem_timedwait = sem_timedwait(*mut sem_t, *const timespec) -> i32;
    sys_open = open(*const c_char, i32, i32) -> i32;
    sys_unlink = unlink(*const c_char) -> i32;
    sys_rmdir = rmdir(*const c_char) -> i32;
    sys_mkdir = mkdir(*const i8, u32) -> i32;
    sys_stat = stat(*const c_char, *mut stat) -> i32;
    sys_lstat = lstat(*const c_char, *mut stat) -> i32;
    sys_fstat = fstat(i32, *mut stat) -> i32;
    sys_notify = notify(usize, i32) -> i32;
    sys_add_queue = add_queue(usize, i64) -> i32;
    sys_wait = wait(usize) -> i32;
    sys_init_queue = init_queue(usize) -> i32;
    sys_destroy_queue = destroy_queue(usize) -> i32;
    sys_network_init = network_init() -> i32;
    sys_getaddrbyname = getaddrbyname(*const c_char, *mut u8, usize) -> i32;
    sys_accept = accept(i32, *mut sockaddr, *mut socklen_t) -> i32;
    sys_bind = bind(i32, *const sockaddr, socklen_t) -> i32;
    sys_connect = connect(i32, *const sockaddr, socklen_t) -> i32;
    sys_read = read(i32, *mut u8, usize) -> isize;
    sys_readv = readv(i32, *const iovec, usize) -> isize;
    sys_writev = writev(i32, *const iovec, usize) -> isize;
    sys_getdents64 = getdents64(i32, *mut dirent64, usize) -> i64;
    sys_read_entropy = read_entropy(*mut u8, usize, u32) -> isize;
    sys_recv = recv(i32, *mut u8, usize, i32) -> isize;
    sys_recvfrom = recvfrom(i32, *mut u8, usize, i32, *mut sockaddr, *mut socklen_t) -> isize;
    sys_lseek = lseek(i32, isize, i32) -> isize;
    sys_close = close(i32) -> i32;
    sys_fsync = fsync(i32) -> i32;
    sys_dup = dup(i32) -> i32;
    sys_getpeername = getpeername(i32, *mut sockaddr, *mut socklen_t) -> i32;
    sys_getsockname = getsockname(i32, *mut sockaddr, *mut socklen_t) -> i32;
    sys_getsockopt = getsockopt(i32, i32, i32, *mut c_void, *mut socklen_t) -> i32;
    sys_setsockopt = setsockopt(i32, i32, i32, *const c_void, socklen_t) -> i32;
    sys_ioctl = ioctl(i32, i32, *mut c_void) -> i32;
    sys_fcntl = fcntl(i32, i32, i32) -> i32;
    sys_eventfd = eventfd(u64, i16) -> i32;
    sys_poll = poll(*mut pollfd, nfds_t, i32) -> i32;
    sys_listen = listen(i32, i32) -> i32;
    sys_send = send(i32, *const c_void, usize, i32) -> isize;
    sys_sendto = sendto(i32, *const c_void, usize, i32, *const sockaddr, socklen_t) -> isize;
    sys_shutdown = shutdown(i32, i32) -> i32;
    sys_socket = socket(i32, i32, i32) -> i32;
    sys_getaddrinfo = getaddrinfo(*const c_char, *const c_char, *const addrinfo, *mut *mut addrinfo) -> i32;
}
