//! Files that are either whole or absent.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Puts `bytes` at `path`, replacing what is there; a reader sees the old file or the new one, never a part.
///
/// A link stays and its target is replaced; what is no file of its own (a pipe, a device) is written to as it is.
///
/// # Errors
///
/// Whatever creating, writing or renaming reports, or that the file there may not be written; then `path` is as it was and nothing
/// is left beside it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = match destination(path)? {
        Destination::File(path) => path,
        Destination::Stream => return fs::OpenOptions::new().write(true).open(path)?.write_all(bytes),
    };
    let part = part_of(&path)?;
    let result = fs::File::create(&part)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&part, &path));
    if result.is_err() {
        // The first error is the one to report; the part may not even exist.
        let _ = fs::remove_file(&part);
    }
    result
}

/// Fails where [`replace`] would, and leaves nothing: to be asked before long work whose result goes to `path`.
///
/// # Errors
///
/// Whatever creating a file there reports.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    let Destination::File(path) = destination(path)? else { return Ok(()) };
    let part = part_of(&path)?;
    fs::File::create(&part).and_then(|_| fs::remove_file(&part))
}

/// Whether two paths lead to one file, there already or not yet. Of streams that is not asked: writing to one twice loses nothing.
pub(crate) fn are_one(a: &Path, b: &Path) -> bool {
    let file = |path: &Path| {
        let Ok(Destination::File(path)) = destination(path) else { return None };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some((fs::canonicalize(folder).ok()?, path.file_name()?.to_os_string()))
    };
    file(a).is_some_and(|one| file(b) == Some(one))
}

/// What a path leads to.
enum Destination {
    /// A file that is there or will be, links followed.
    File(PathBuf),
    /// A pipe or a device, which has no contents to replace.
    Stream,
}

fn destination(path: &Path) -> io::Result<Destination> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder")),
        Ok(found) if !found.is_file() => Ok(Destination::Stream),
        Ok(found) if found.permissions().readonly() => {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "there is a file that may only be read"))
        }
        Ok(_) => fs::canonicalize(path).map(Destination::File),
        // A link to what is not there yet, or nothing at all.
        Err(_) => Ok(Destination::File(match fs::read_link(path) {
            Ok(target) => path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => path.to_path_buf(),
        })),
    }
}

/// The hidden file beside `path` that becomes it once it is whole.
fn part_of(path: &Path) -> io::Result<PathBuf> {
    // `file_name` passes over a separator at the end, which says that a folder is meant.
    let is_folder =
        path.as_os_str().as_encoded_bytes().last().is_some_and(|&last| std::path::is_separator(last.into()));
    let name = path.file_name().filter(|_| !is_folder);
    let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.part", std::process::id()));
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        replace(&path, b"old").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn one_file_is_known_by_any_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("below")).unwrap();
        for link in ["first", "second"] {
            std::os::unix::fs::symlink("target", path(link)).unwrap();
        }
        for _ in 0..2 {
            for other in ["target", "./target", "below/../target", "first", "second"] {
                assert!(are_one(&path("target"), &path(other)), "{other}");
            }
            assert!(!are_one(&path("target"), &path("below/target")) && !are_one(&path("target"), &path("other")));
            fs::write(path("target"), "there").unwrap();
        }
        assert!(!are_one(Path::new("/dev/null"), Path::new("/dev/null")));
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_devices_are_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        std::os::unix::fs::symlink("target", &link).unwrap();
        for text in ["made", "replaced"] {
            replace(&link, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), text);
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }
        let mut permissions = fs::metadata(&target).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&target, permissions).unwrap();
        assert!(check(&link).is_err() && replace(&target, b"x").is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "replaced");
        // A socket is neither file nor folder, and cannot be opened: what matters is that it is still there.
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(replace(&socket, b"x").is_err());
        assert!(!fs::symlink_metadata(&socket).unwrap().is_file());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_failure_leaves_no_part_behind() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken");
        fs::create_dir_all(taken.join("inside")).unwrap();
        assert!(replace(&taken, b"x").is_err());
        assert!(check(&taken).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(replace(&folder.path().join("missing/file"), b"x").is_err());
        assert!(check(&folder.path().join("missing/file")).is_err());
        assert!(check(&folder.path().join("no-folder-yet/")).is_err());
        check(&folder.path().join("new")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
