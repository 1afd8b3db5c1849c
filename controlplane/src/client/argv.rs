//! Takes the access key and passwords out of this process's command line, which `ps` shows to everyone on the host.

use std::fs;

/// Overwrites `secret` with stars in every argument that is it, and in every option that ends with it (`-k KEY`,
/// `-vkKEY`, `--api-key=KEY`). Until then, a few milliseconds after the start, it was readable: one in the environment or
/// in a file never is.
/// Does nothing where the kernel does not tell the place.
pub fn hide(secret: &str) {
    let Some((start, end)) = range() else {
        return;
    };
    // SAFETY: the kernel placed the argument strings there before main and they stay mapped and writable for the
    // life of the process (a program may set its title so); `std::env::args_os` hands out copies, and no other
    // thread runs yet.
    let area = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
    overwrite(area, secret.as_bytes());
}

/// Fields 48 and 49 of proc_pid_stat(5). The second field may hold spaces and ends with the last parenthesis.
fn range() -> Option<(usize, usize)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace().skip(45);
    let start: usize = fields.next()?.parse().ok()?;
    let end: usize = fields.next()?.parse().ok()?;
    (start != 0 && start < end).then_some((start, end))
}

fn overwrite(area: &mut [u8], secret: &[u8]) {
    for argument in area.split_mut(|b| *b == 0).skip(1) {
        let prefix = argument.len().saturating_sub(secret.len());
        if !secret.is_empty() && argument.ends_with(secret) && (prefix == 0 || argument[0] == b'-') {
            argument[prefix..].fill(b'*');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_is_overwritten() {
        let mut area = *b"key\0-k\0key\0-kkey\0-vk=key\0--access-key=key\0-u\0monkey\0";
        overwrite(&mut area, b"key");
        assert_eq!(&area, b"key\0-k\0***\0-k***\0-vk=***\0--access-key=***\0-u\0monkey\0");
        let mut area_of_auth = *b"-a\0h:80:u:p\0-ah:80:u:p\0--auth=h:80:u:p\0-i\0p\0";
        overwrite(&mut area_of_auth, b"h:80:u:p");
        assert_eq!(&area_of_auth, b"-a\0********\0-a********\0--auth=********\0-i\0p\0");
        let before = area;
        overwrite(&mut area, b"");
        assert_eq!(area, before);
    }

    #[test]
    fn the_kernel_tells_the_place() {
        let (start, end) = range().unwrap();
        let cmdline = fs::read("/proc/self/cmdline").unwrap();
        assert_eq!(end - start, cmdline.len());
    }
}
