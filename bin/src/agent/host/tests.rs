//! The host against the real kernel.
//!
//! What needs a namespace of its own runs this test binary again inside one (`unshare`, as root, or as root of a user namespace), so
//! that no test touches the machine. Where the kernel lacks something a test fails and says what; it never passes quietly.

use super::{HostOptions, LinuxHost};
use muster_core::agent::host::{Host, HostError, Observed};
use muster_core::agent::value;
use muster_core::journal::key::{Key, Setting};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const INSIDE: &str = "MUSTER_TEST_INSIDE";

/// Runs the rest of a test in network and mount namespaces of its own.
macro_rules! in_namespaces {
    () => {
        if std::env::var_os(INSIDE).is_none() {
            fn here() {}
            // The test's own name: with one thread for all tests, the thread's name says nothing.
            let name = std::any::type_name_of_val(&here).trim_start_matches("muster::").trim_end_matches("::here");
            return again_in_namespaces(name);
        }
    };
}

#[track_caller]
fn again_in_namespaces(test: &str) {
    let mut command = Command::new("unshare");
    if !rustix::process::getuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.arg(std::env::current_exe().unwrap()).args([
        "--exact",
        test,
        "--include-ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    let output = command.env(INSIDE, "1").stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("this test needs unshare(1) of util-linux: {error}"));
    let (printed, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success() && printed.contains("1 passed"),
        "in namespaces of its own (if unshare itself failed, the kernel does not permit namespaces here): {printed}{complained}"
    );
    print!("{printed}");
}

struct Bench {
    dir: TempDir,
    host: LinuxHost,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    /// A host confined to an empty directory.
    fn confined() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        Self::with(dir, true, Vec::new())
    }

    /// A host of the whole machine, which is this test's own by now.
    fn machine() -> Self {
        Self::with(TempDir::new().unwrap(), false, Vec::new())
    }

    fn with(dir: TempDir, confined: bool, excluded: Vec<String>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let host = LinuxHost::open(&Self::options(&dir, confined, excluded)).unwrap();
        Self { dir, host, runtime }
    }

    fn options(dir: &TempDir, confined: bool, excluded: Vec<String>) -> HostOptions {
        HostOptions { root: confined.then(|| dir.path().join("root")), own: dir.path().join("agent"), excluded }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Ends this host and opens another in its place, as a restart of the agent does.
    fn restart(&mut self) {
        let options = Self::options(&self.dir, true, Vec::new());
        let host = LinuxHost::open(&options).unwrap();
        let old = std::mem::replace(&mut self.host, host);
        drop(old);
    }

    fn observe(&mut self, name: &str) -> Observed {
        let key = key(name);
        self.runtime.block_on(self.host.observe(std::slice::from_ref(&key))).remove(&key).unwrap()
    }

    #[track_caller]
    fn value(&mut self, name: &str) -> String {
        match self.observe(name) {
            Observed::Value(value) => value.to_string(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn unseen(&mut self, name: &str) -> String {
        match self.observe(name) {
            Observed::Unseen(why) => why.to_string(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn try_change(&mut self, name: &str, setting: &Setting) -> Result<(), HostError> {
        self.runtime.block_on(self.host.change(&key(name), setting))
    }

    /// Changes a key, and sees that it agrees with what was asked for.
    #[track_caller]
    fn set(&mut self, name: &str, text: &str) {
        self.try_change(name, &value(text)).unwrap_or_else(|error| panic!("{error}"));
        let found = self.observe(name);
        assert!(value::agrees(&key(name), &value(text), &found), "{name}={text} became {found:?}");
    }

    #[track_caller]
    fn remove(&mut self, name: &str) {
        self.try_change(name, &Setting::Absent).unwrap_or_else(|error| panic!("{error}"));
        let found = self.observe(name);
        assert!(value::agrees(&key(name), &Setting::Absent, &found), "{name} is still {found:?}");
    }

    #[track_caller]
    fn refused(&mut self, name: &str, text: &str, says: &str) {
        let error = self.try_change(name, &value(text)).expect_err(&format!("{name}={text}"));
        assert!(error.to_string().contains(says), "{error}");
    }

    /// Who uses a key, as people read it.
    fn consumers(&mut self, name: &str) -> Vec<String> {
        let found = self.runtime.block_on(self.host.consumers(&[key(name)]));
        found.iter().map(ToString::to_string).collect()
    }

    fn watch(&mut self, names: &[&str]) {
        let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
        self.host.watch(&keys);
        // Those that are new are named at once.
        self.expect_all_changed(names);
    }

    /// Waits until a key is named; anything else that is named meanwhile is dropped.
    #[track_caller]
    fn expect_changed(&mut self, name: &str) {
        self.expect_all_changed(&[name]);
    }

    #[track_caller]
    fn expect_all_changed(&mut self, names: &[&str]) {
        let mut wanted: BTreeSet<Key> = names.iter().map(|name| key(name)).collect();
        let host = &mut self.host;
        let waiting = async {
            while !wanted.is_empty() {
                for named in host.changed().await {
                    wanted.remove(&named);
                }
            }
        };
        let named = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), waiting).await });
        assert!(named.is_ok(), "the change of {wanted:?} was never named");
    }

    /// Waits until a key is found to be so.
    #[track_caller]
    fn eventually(&mut self, name: &str, what: &str, is_so: impl Fn(&Observed) -> bool) {
        let mut found = self.observe(name);
        for _ in 0..500 {
            if is_so(&found) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
            found = self.observe(name);
        }
        panic!("{name} never became {what}: it is {found:?}");
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn value(text: &str) -> Setting {
    Setting::Value(text.into())
}

/// A process that ends with the test.
struct Held(Child);

impl Held {
    fn shell(script: &str) -> Self {
        Self(Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn stops_until<T>(mut is_so: impl FnMut() -> Option<T>, what: &str) -> T {
    for _ in 0..500 {
        if let Some(found) = is_so() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it did not come to pass that {what}");
}

// Files.

#[test]
fn files_take_content_mode_and_owner_and_keep_what_is_not_said() {
    let mut bench = Bench::confined();
    let own = format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    bench.set("files:/etc/motd", "Welcome\n");
    assert_eq!(bench.value("files:/etc/motd"), format!("@file mode=0644 ids={own} text=Welcome\n"));
    bench.set("files:/etc/motd", "@file mode=0600");
    bench.set("files:/etc/motd", "Changed");
    assert_eq!(bench.value("files:/etc/motd"), format!("@file mode=0600 ids={own} text=Changed"));
    bench.set("files:/etc/motd", &format!("@file mode=4711 ids={own} text=x"));
    assert_eq!(fs::metadata(bench.root().join("etc/motd")).unwrap().permissions().mode() & 0o7777, 0o4711);
    bench.remove("files:/etc/motd");
    assert_eq!(bench.observe("files:/etc/motd"), Observed::Absent);
    bench.remove("files:/etc/motd");
}

#[test]
fn names_of_owners_come_from_the_root() {
    let mut bench = Bench::confined();
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    bench.set("files:/etc/passwd", &format!("alice:x:{user}:{group}::/:/bin/sh\n"));
    bench.set("files:/etc/group", &format!("staff:x:{group}:\n"));
    bench.set("files:/a", "@file owner=alice:staff text=x");
    assert!(bench.value("files:/a").contains("owner=alice:staff"));
    bench.refused(
        "files:/a",
        "@file owner=bob:staff",
        "/etc/passwd knows no user \"bob\"; give numbers with ids=UID:GID",
    );
}

#[test]
fn files_links_and_directories_take_each_others_place() {
    let mut bench = Bench::confined();
    bench.set("files:/srv/thing", "@dir mode=0700");
    bench.set("files:/srv/thing", "@link to=/anywhere at all");
    assert!(bench.value("files:/srv/thing").ends_with(" to=/anywhere at all"));
    bench.set("files:/srv/thing", "@link to=elsewhere");
    bench.set("files:/srv/thing", "a file");
    bench.set("files:/srv/thing", "@dir");
    assert_eq!(names_in(&bench.root().join("srv")), ["thing"]);
    bench.set("files:/srv/thing/inside", "x");
    for wanted in ["a file", "@link to=x"] {
        bench.refused("files:/srv/thing", wanted, "not empty");
        assert_eq!(bench.value("files:/srv/thing/inside").split("text=").nth(1), Some("x"));
    }
    let error = bench.try_change("files:/srv/thing", &Setting::Absent).unwrap_err();
    assert!(error.to_string().contains("not empty; empty it first"), "{error}");
    assert_eq!(names_in(&bench.root().join("srv")), ["thing"]);
}

#[test]
fn content_that_is_not_text_and_content_too_large_for_a_value_are_told_apart() {
    let mut bench = Bench::confined();
    bench.set("files:/key", "@file base64=AAECAwT/");
    assert_eq!(fs::read(bench.root().join("key")).unwrap(), [0, 1, 2, 3, 4, 255]);
    assert!(bench.value("files:/key").ends_with("base64=AAECAwT/"));
    let large = vec![7_u8; 1 << 20];
    fs::write(bench.root().join("large"), &large).unwrap();
    let digest = blake3::hash(&large);
    assert!(bench.value("files:/large").ends_with(&format!("blake3={digest}")));
    bench.set("files:/large", &format!("@file mode=0600 blake3={digest}"));
    bench.refused("files:/large", &format!("@file blake3={}", blake3::hash(b"other")), "known by its digest alone");
    bench.refused("files:/none", "@file mode=0600", "does not say what would be in it");
}

#[test]
fn a_change_keeps_extended_attributes() {
    let mut bench = Bench::confined();
    bench.set("files:/labelled", "one");
    let path = bench.root().join("labelled");
    rustix::fs::setxattr(&path, "user.label", b"kept", rustix::fs::XattrFlags::empty())
        .expect("this test needs a temporary directory on a file system with extended attributes");
    bench.set("files:/labelled", "two");
    let mut label = [0_u8; 16];
    let length = rustix::fs::getxattr(&path, "user.label", &mut label[..]).unwrap();
    assert_eq!(&label[..length], b"kept");
}

#[test]
fn a_path_never_leaves_the_root() {
    let mut bench = Bench::confined();
    let outside = bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "kept").unwrap();
    let root = bench.root();
    symlink("../outside", root.join("up")).unwrap();
    symlink(&outside, root.join("absolute")).unwrap();
    symlink(outside.join("secret"), root.join("secret")).unwrap();
    fs::create_dir(root.join("inside")).unwrap();
    symlink("inside", root.join("beside")).unwrap();
    for way in ["up", "absolute"] {
        for name in ["secret", "new", "deeper/new"] {
            let name = format!("files:/{way}/{name}");
            assert!(bench.unseen(&name).contains("leaves the root"), "{name}");
            bench.refused(&name, "changed", "leaves the root");
            let error = bench.try_change(&name, &Setting::Absent).unwrap_err();
            assert!(error.to_string().contains("leaves the root"), "{error}");
        }
        let mount = format!("mounts:/{way}/point");
        bench.refused(&mount, "tmpfs tmpfs", "leaves the root");
        bench.refused("mounts:/point", &format!("/{way} none bind"), "leaves the root");
    }
    bench.refused("files:/inside/../../outside/secret", "changed", "a part is empty, '.' or '..'");
    bench.refused("kernel:../../outside/secret", "1", "not a kernel parameter's name");
    assert_eq!(names_in(&outside), ["secret"]);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "kept");
    // The link itself lies inside: it is replaced, not followed.
    bench.set("files:/secret", "mine");
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "kept");
    bench.set("files:/beside/x", "links that stay inside are followed");
    assert_eq!(names_in(&root.join("inside")), ["x"]);
}

#[test]
fn excluded_paths_are_never_touched_by_whatever_way() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("etc/agent")).unwrap();
    fs::create_dir_all(root.join("proc")).unwrap();
    symlink("etc/agent", root.join("way")).unwrap();
    let mut bench = Bench::with(dir, true, vec!["/etc/agent".to_owned()]);
    for name in [
        "files:/etc/agent/x",
        "files:/way/x",
        "files:/proc/x",
        "files:/sys/a/b",
        "files:/etc",
        "mounts:/etc",
        "mounts:/dev/shm",
    ] {
        let text = if name.starts_with("files") { "x" } else { "tmpfs tmpfs" };
        bench.refused(name, text, "is never managed");
        assert!(bench.unseen(name).contains("is never managed"), "{name}");
    }
    assert!(names_in(&root.join("etc/agent")).is_empty());
    assert!(!root.join("sys").exists());
    let own = Bench::options(&bench.dir, false, Vec::new());
    let mut host = LinuxHost::open(&own).unwrap();
    let key =
        value::path_key(muster_core::journal::key::Dimension::Files, own.own.join("x").to_str().unwrap()).unwrap();
    let error = bench.runtime.block_on(host.change(&key, &value("x"))).unwrap_err();
    assert!(error.to_string().contains("is never managed"), "{error}");
}

#[test]
fn a_file_is_never_half_written() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("mounts:/small", "tmpfs tmpfs size=64k");
    bench.set("files:/small/file", "old");
    let large = "x".repeat(200_000);
    bench.refused("files:/small/file", &large, "No space left on device");
    bench.refused("files:/small/other", &large, "No space left on device");
    assert!(bench.value("files:/small/file").ends_with("text=old"));
    assert_eq!(names_in(&bench.root().join("small")), ["file"]);
}

#[test]
fn what_a_crash_left_beside_a_file_is_replaced_by_the_next_try() {
    let mut bench = Bench::confined();
    bench.set("files:/a/motd", "old");
    fs::write(bench.root().join("a/.motd.muster"), "half a fi").unwrap();
    bench.set("files:/a/motd", "new");
    assert_eq!(names_in(&bench.root().join("a")), ["motd"]);
    symlink("/etc/passwd", bench.root().join("a/.motd.muster")).unwrap();
    bench.set("files:/a/motd", "newer");
    assert_eq!(names_in(&bench.root().join("a")), ["motd"]);
}

#[test]
fn readers_see_the_old_file_or_the_new_one() {
    let mut bench = Bench::confined();
    let (old, new) = ("a".repeat(300_000), "b".repeat(300_000));
    bench.set("files:/file", &old);
    let path = bench.root().join("file");
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = std::thread::spawn({
        let done = done.clone();
        move || {
            let mut reads = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) || reads == 0 {
                let text = fs::read(&path).unwrap();
                assert_eq!(text.len(), 300_000);
                assert!(text.windows(2).all(|pair| pair[0] == pair[1]), "a mixture was read");
                reads += 1;
            }
        }
    });
    for _ in 0..10 {
        bench.set("files:/file", &new);
        bench.set("files:/file", &old);
    }
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    reader.join().unwrap();
}

// Kernel parameters.

#[test]
fn a_parameter_of_the_kernel_is_set_in_a_network_namespace_of_its_own() {
    in_namespaces!();
    let mut bench = Bench::machine();
    assert_eq!(bench.value("kernel:net.ipv4.ip_forward"), "0");
    bench.set("kernel:net.ipv4.ip_forward", "1");
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
    bench.set("kernel:net.ipv4.tcp_rmem", "4096 131072 5242880");
    bench.set("kernel:net.ipv4.conf.lo.forwarding", "0x1");
    bench.set("kernel:net.ipv4.ip_forward", "0");
}

#[test]
fn a_value_the_kernel_refuses_is_refused_with_its_reason() {
    in_namespaces!();
    let mut bench = Bench::machine();
    let before = bench.value("kernel:net.ipv4.ip_default_ttl");
    bench.refused(
        "kernel:net.ipv4.ip_default_ttl",
        "4711",
        "the kernel refuses \"4711\" for /proc/sys/net/ipv4/ip_default_ttl: Invalid argument",
    );
    assert_eq!(bench.value("kernel:net.ipv4.ip_default_ttl"), before);
    bench.refused(
        "kernel:net.ipv4.no_such_thing",
        "1",
        "there is no kernel parameter /proc/sys/net/ipv4/no_such_thing",
    );
    assert!(bench.unseen("kernel:net.ipv4.no_such_thing").contains("there is no kernel parameter"));
    let error = bench.try_change("kernel:net.ipv4.ip_forward", &Setting::Absent).unwrap_err();
    assert!(error.to_string().contains("cannot be absent"), "{error}");
}

#[test]
fn under_a_root_parameters_are_files_and_an_emptied_root_is_a_new_boot() {
    let mut bench = Bench::confined();
    assert_eq!(bench.observe("kernel:vm.swappiness"), Observed::Absent);
    bench.set("kernel:vm.swappiness", "10");
    // Nobody had set it: a rollback takes it away again.
    bench.remove("kernel:vm.swappiness");
    assert_eq!(bench.observe("kernel:vm.swappiness"), Observed::Absent);
    bench.set("kernel:vm.swappiness", "10");
    bench.set("kernel:vm.swappiness", "5");
    assert_eq!(fs::read_to_string(bench.root().join("proc/sys/vm/swappiness")).unwrap(), "5\n");
    let boot = bench.runtime.block_on(bench.host.boot_id());
    assert_eq!(boot.0.len(), 36);
    bench.restart();
    assert_eq!(bench.runtime.block_on(bench.host.boot_id()), boot);
    fs::remove_dir_all(bench.root().join("proc")).unwrap();
    assert_ne!(bench.runtime.block_on(bench.host.boot_id()), boot);
    assert_eq!(bench.observe("kernel:vm.swappiness"), Observed::Absent);
}

// Mounts.

#[test]
fn a_tmpfs_is_mounted_changed_and_unmounted() {
    in_namespaces!();
    let mut bench = Bench::confined();
    assert_eq!(bench.observe("mounts:/mnt/data"), Observed::Absent);
    bench.set("mounts:/mnt/data", "tmpfs tmpfs size=1m,nosuid,mode=0700");
    let shown = bench.value("mounts:/mnt/data");
    assert!(shown.starts_with("tmpfs tmpfs ") && shown.contains("nosuid") && shown.contains("size=1024k"), "{shown}");
    bench.set("files:/mnt/data/kept", "x");
    bench.set("mounts:/mnt/data", "tmpfs tmpfs size=2m,ro");
    let shown = bench.value("mounts:/mnt/data");
    assert!(shown.contains("nosuid"), "what is not said stays: {shown}");
    assert!(bench.value("files:/mnt/data/kept").ends_with("text=x"), "it was reconfigured, not mounted anew");
    bench.refused("files:/mnt/data/new", "x", "Read-only file system");
    // What is observed can be declared; but in a user namespace the kernel shows ids that it does not take there.
    let mut again = value::mount::Mount::parse(&shown).unwrap();
    again.options.retain(|option| !option.starts_with("uid=") && !option.starts_with("gid="));
    let shown = again.to_string();
    bench.set("mounts:/mnt/data", &shown);
    bench.remove("mounts:/mnt/data");
    assert!(bench.root().join("mnt/data").is_dir());
    bench.set("mounts:/mnt/data", &shown);
    assert!(bench.value("mounts:/mnt/data").starts_with("tmpfs tmpfs "));
}

#[test]
fn a_mount_the_kernel_refuses_leaves_what_was_there() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("mounts:/data", "tmpfs tmpfs size=1m");
    bench.set("files:/data/kept", "x");
    bench.refused("mounts:/data", "tmpfs tmpfs size=lots", "size");
    bench.refused("mounts:/data", "/dev/no-such-device ext4", "/dev/no-such-device");
    bench.refused("mounts:/data", "nothing nosuchfs", "this kernel has no file system \"nosuchfs\"");
    assert!(bench.value("files:/data/kept").ends_with("text=x"));
    bench.refused("mounts:/new", "tmpfs tmpfs huge=perhaps", "huge");
    assert!(!bench.root().join("new").exists(), "the mount point that was made for it is gone");
    bench.set("files:/file", "x");
    bench.refused("mounts:/file", "tmpfs tmpfs", "not a directory");
}

#[test]
fn another_file_system_takes_the_place_of_the_one_there() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("mounts:/data", "tmpfs tmpfs");
    bench.set("mounts:/data", "ramfs ramfs");
    assert!(bench.value("mounts:/data").starts_with("ramfs ramfs "));
    bench.set("mounts:/data/below", "tmpfs tmpfs");
    let error = bench.try_change("mounts:/data", &Setting::Absent).unwrap_err();
    assert!(error.to_string().contains("/data/below is mounted below it"), "{error}");
    bench.remove("mounts:/data/below");
    bench.remove("mounts:/data");
}

#[test]
fn a_directory_is_bound_to_a_second_place() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("files:/srv/data/file", "x");
    bench.set("mounts:/mnt/data", "/srv/data none bind,ro");
    assert!(bench.value("mounts:/mnt/data").starts_with("/srv/data none bind,"));
    assert!(bench.value("files:/mnt/data/file").ends_with("text=x"));
    bench.refused("files:/mnt/data/file", "y", "Read-only file system");
    bench.set("files:/srv/data/file", "y");
    bench.set("mounts:/mnt/data", "/srv/data none bind,rw");
    bench.set("files:/mnt/data/file", "z");
    bench.set("mounts:/tmp", "tmpfs tmpfs");
    bench.set("mounts:/mnt/tmp", "/tmp none bind");
    bench.refused("mounts:/mnt/none", "/no/such/dir none bind", "/no/such/dir");
}

#[test]
fn a_process_under_a_mount_is_named_and_blocks_it_until_it_ends() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("mounts:/mnt/data", "tmpfs tmpfs");
    bench.set("files:/mnt/data/log", "x");
    assert_eq!(bench.consumers("mounts:/mnt/data"), [""; 0]);
    let log = bench.root().join("mnt/data/log");
    let holder = Held::shell(&format!("exec 9<{}; echo; read line", log.display()));
    let expected = format!("pid {} (/bin/sh -c exec 9<", holder.pid());
    let found =
        stops_until(|| Some(bench.consumers("mounts:/mnt/data")).filter(|found| !found.is_empty()), "the file is open");
    assert!(found[0].starts_with(&expected), "{found:?}");
    assert!(found[0].ends_with(&format!(" uses {} of mounts:/mnt/data", log.display())), "{found:?}");
    assert_eq!(bench.consumers("files:/mnt/data/log").len(), 1);
    assert_eq!(bench.consumers("files:/mnt/data/other"), [""; 0]);
    let error = bench.try_change("mounts:/mnt/data", &Setting::Absent).unwrap_err();
    assert!(error.to_string().contains("is in use and cannot be unmounted"), "{error}");
    bench.refused("mounts:/mnt/data", "ramfs ramfs", "is in use");
    assert!(bench.value("files:/mnt/data/log").ends_with("text=x"));
    drop(holder);
    bench.remove("mounts:/mnt/data");
}

#[test]
fn a_working_directory_and_a_mapped_program_are_uses_too() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("mounts:/mnt", "tmpfs tmpfs");
    let root = bench.root();
    fs::create_dir(root.join("mnt/dir")).unwrap();
    fs::copy("/bin/sleep", root.join("mnt/program")).unwrap();
    let inside = Held(Command::new("/bin/sleep").arg("60").current_dir(root.join("mnt/dir")).spawn().unwrap());
    let runs = Held(Command::new(root.join("mnt/program")).arg("60").spawn().unwrap());
    let named = |found: &[String], pid: u32| found.iter().any(|line| line.starts_with(&format!("pid {pid} (")));
    stops_until(
        || {
            let found = bench.consumers("mounts:/mnt");
            (named(&found, inside.pid()) && named(&found, runs.pid())).then_some(())
        },
        "both are named",
    );
    let found = bench.consumers("files:/mnt/program");
    assert!(named(&found, runs.pid()) && !named(&found, inside.pid()), "{found:?}");
    let found = bench.consumers("files:/mnt/dir");
    assert!(named(&found, inside.pid()) && !named(&found, runs.pid()), "{found:?}");
    // A second view of the same file system is another mount.
    bench.set("mounts:/second", "/mnt none bind");
    assert_eq!(bench.consumers("mounts:/second"), [""; 0]);
}

#[test]
fn without_the_right_to_mount_it_is_said_what_is_needed() {
    in_namespaces!();
    let mut bench = Bench::confined();
    let open = |bench: &mut Bench| bench.try_change("mounts:/data", &value("tmpfs tmpfs"));
    // The host's thread gets its rights from the one that starts it.
    let sets = rustix::thread::CapabilitySets {
        effective: rustix::thread::CapabilitySet::empty(),
        permitted: rustix::thread::CapabilitySet::empty(),
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).unwrap();
    bench.restart();
    let error = open(&mut bench).unwrap_err();
    assert!(error.to_string().contains("CAP_SYS_ADMIN: run the agent as root"), "{error}");
    assert!(!bench.root().join("data").exists());
}

// Services.

const TICKER: &str = "running command=/bin/sh -c 'while :; do sleep 1; done'";

fn leader(bench: &Bench, name: &str) -> u32 {
    let note = fs::read(bench.dir.path().join(format!("agent/services/{name}.json"))).unwrap();
    let note: serde_json::Value = serde_json::from_slice(&note).unwrap();
    u32::try_from(note["pid"].as_u64().expect("it runs")).unwrap()
}

fn lives(pid: u32) -> bool {
    super::processes::stat(pid).is_some()
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn is(text: &str) -> impl Fn(&Observed) -> bool + '_ {
    move |found| matches!(found, Observed::Value(value) if value.starts_with(text))
}

#[test]
fn a_service_is_started_kept_alive_and_stopped() {
    in_namespaces!();
    let mut bench = Bench::confined();
    assert_eq!(bench.observe("services:ticker"), Observed::Absent);
    bench.refused("services:ticker", "running", "nothing says what ticker runs; add command=");
    bench.refused("services:ticker", "running enabled command=/bin/true", "leave out enabled and disabled");
    bench.refused("services:ticker", "running command=/no/such/program", "/no/such/program");
    bench.set("services:ticker", TICKER);
    let first = leader(&bench, "ticker");
    assert!(lives(first));
    bench.set("services:ticker", TICKER);
    assert_eq!(leader(&bench, "ticker"), first, "it was what it should be");
    bench.watch(&["services:ticker"]);
    kill(first, rustix::process::Signal::KILL);
    stops_until(
        || Some(()).filter(|()| leader_or_none(&bench, "ticker").is_some_and(|pid| pid != first && lives(pid))),
        "it runs again",
    );
    bench.expect_changed("services:ticker");
    bench.set("services:ticker", "stopped");
    assert!(bench.value("services:ticker").starts_with("stopped command="));
    bench.set("services:ticker", "running");
    let last = leader(&bench, "ticker");
    bench.remove("services:ticker");
    assert!(!lives(last));
    assert!(names_in(&bench.dir.path().join("agent/services")).is_empty());
}

fn leader_or_none(bench: &Bench, name: &str) -> Option<u32> {
    let note = fs::read(bench.dir.path().join(format!("agent/services/{name}.json"))).ok()?;
    let note: serde_json::Value = serde_json::from_slice(&note).ok()?;
    u32::try_from(note["pid"].as_u64()?).ok()
}

#[test]
fn a_service_somebody_stops_stays_stopped_and_is_named() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("services:ticker", TICKER);
    bench.watch(&["services:ticker"]);
    kill(leader(&bench, "ticker"), rustix::process::Signal::TERM);
    bench.expect_changed("services:ticker");
    bench.eventually("services:ticker", "stopped", is("stopped"));
    bench.restart();
    assert!(bench.value("services:ticker").starts_with("stopped"));
    bench.set("services:ticker", "running");
}

#[test]
fn a_service_outlives_the_agent_and_is_taken_up_again() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("services:ticker", TICKER);
    let pid = leader(&bench, "ticker");
    bench.restart();
    assert_eq!((leader(&bench, "ticker"), lives(pid)), (pid, true));
    assert!(bench.value("services:ticker").starts_with("running command="));
    bench.watch(&["services:ticker"]);
    kill(pid, rustix::process::Signal::KILL);
    bench.expect_changed("services:ticker");
    stops_until(|| leader_or_none(&bench, "ticker").filter(|new| *new != pid && lives(*new)), "it runs again");
    // Its number was never noted: it is found by the note it carries.
    let pid = leader(&bench, "ticker");
    let note = bench.dir.path().join("agent/services/ticker.json");
    let text = fs::read_to_string(&note).unwrap();
    let mut parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    parsed["pid"] = serde_json::Value::Null;
    fs::write(&note, parsed.to_string()).unwrap();
    bench.restart();
    assert!(lives(pid));
    bench.set("services:ticker", "stopped");
    assert!(!lives(pid));
}

#[test]
fn a_new_boot_has_no_services_of_the_one_before() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("services:ticker", TICKER);
    let pid = leader(&bench, "ticker");
    fs::remove_dir_all(bench.root()).unwrap();
    fs::create_dir(bench.root()).unwrap();
    bench.restart();
    assert!(!lives(pid));
    assert_eq!(bench.observe("services:ticker"), Observed::Absent);
}

#[test]
fn a_service_that_fails_at_once_was_not_started_and_the_one_before_goes_on() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.refused(
        "services:broken",
        "running command=/bin/sh -c 'echo no such database >&2; exit 3'",
        "(exit status: 3): no such database",
    );
    assert!(bench.value("services:broken").starts_with("stopped"));
    bench.set("services:ticker", TICKER);
    bench.refused("services:ticker", "running command=/bin/sh -c 'exit 1'", "ended at once (exit status: 1)");
    bench.eventually("services:ticker", "running", is("running command=/bin/sh -c 'while"));
    assert!(lives(leader(&bench, "ticker")));
}

#[test]
fn a_service_that_keeps_failing_counts_as_stopped() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("services:flappy", "running command=/bin/sh -c 'sleep 0.3; exit 1'");
    bench.eventually("services:flappy", "stopped after failures", is("stopped"));
}

#[test]
fn stopping_a_service_ends_all_its_processes_even_those_that_do_not_listen() {
    in_namespaces!();
    let mut bench = Bench::confined();
    bench.set("services:family", "running command=/bin/sh -c 'trap : TERM; sleep 1000 & sleep 1001 & wait; exit 0'");
    let family = leader(&bench, "family");
    let members = || -> Vec<u32> {
        let of = |pid: &u32| super::processes::stat(*pid).is_some_and(|stat| stat.group == family);
        super::processes::all().into_iter().filter(of).collect()
    };
    stops_until(|| (members().len() == 3).then_some(()), "it has two children");
    bench.set("services:family", "stopped");
    assert_eq!(members(), [0; 0]);
}

#[test]
fn who_is_connected_to_a_service_is_named() {
    in_namespaces!();
    let mut bench = Bench::confined();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "this test needs ip(8)");
    let server = "import socket,time\ns=socket.create_server((\"127.0.0.1\",4711))\nc,_=s.accept()\ntime.sleep(60)";
    assert!(Path::new("/usr/bin/python3").exists(), "this test needs /usr/bin/python3 as a service that listens");
    bench.set("services:listener", &format!("running command=/usr/bin/python3 -c '{server}'"));
    assert_eq!(bench.consumers("services:listener"), [""; 0]);
    let client = "import socket,time\nwhile True:\n  try:\n    s=socket.create_connection((\"127.0.0.1\",4711)); break\n  except OSError: time.sleep(0.02)\ntime.sleep(60)";
    let client = Held(Command::new("/usr/bin/python3").args(["-c", client]).spawn().unwrap());
    let found =
        stops_until(|| Some(bench.consumers("services:listener")).filter(|found| !found.is_empty()), "it is connected");
    assert!(found[0].starts_with(&format!("pid {} (/usr/bin/python3", client.pid())), "{found:?}");
    assert!(found[0].contains("to 127.0.0.1:4711"), "{found:?}");
    bench.set("services:listener", "stopped");
}

// Network, packages, GPUs.

#[test]
fn settings_of_links_are_set_by_netlink() {
    in_namespaces!();
    let mut bench = Bench::machine();
    let made = Command::new("ip").args(["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"]).status();
    assert!(made.is_ok_and(|status| status.success()), "this test needs ip(8) and a kernel with veth");
    assert_eq!(bench.value("network:veth0.state"), "down");
    bench.set("network:veth0.mtu", "9000");
    bench.set("network:veth0.txqueuelen", "500");
    bench.set("network:veth0.mac", "02:00:00:00:00:AB");
    bench.set("network:veth0.state", "up");
    bench.set("network:veth0.address", "10.1.0.2/24,fd00::2/64");
    bench.set("network:veth0.address", "10.1.0.3/24,10.1.0.4/24");
    // Without its primary address a link loses the others of that network.
    bench.set("network:veth0.address", "10.1.0.4/24");
    bench.remove("network:veth0.address");
    assert_eq!(bench.observe("network:veth0.address"), Observed::Absent);
    bench.refused("network:veth0.mac", "01:00:00:00:00:01", "Cannot assign requested address");
    assert_eq!(bench.value("network:veth0.mac"), "02:00:00:00:00:ab");
    assert!(bench.unseen("network:eth9.mtu").starts_with("there is no link eth9; there are lo, "));
    bench.refused("network:eth9.mtu", "1500", "there is no link eth9");
}

#[test]
fn under_a_root_network_and_gpus_are_unseen_and_packages_only_seen() {
    let mut bench = Bench::confined();
    assert!(bench.unseen("network:lo.mtu").contains("not managed under --root"));
    bench.refused("network:lo.mtu", "1500", "not managed under --root");
    assert!(bench.unseen("gpu:0.ecc").contains("under --root"));
    assert!(bench.unseen("packages:nginx").contains("there is no package database"));
    fs::create_dir_all(bench.root().join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(bench.root().join("var/lib/dpkg/updates")).unwrap();
    let status = "Package: nginx\nStatus: install ok installed\nMaintainer: x <x@example.org>\nArchitecture: all\nVersion: 1.22.1-9\nDescription: x\n\n\
         Package: gone\nStatus: deinstall ok config-files\nMaintainer: x <x@example.org>\nArchitecture: all\nVersion: 2\nDescription: x\n";
    fs::write(bench.root().join("var/lib/dpkg/status"), status).unwrap();
    assert!(Path::new("/usr/bin/dpkg-query").exists(), "this test needs dpkg-query");
    assert_eq!(bench.value("packages:nginx"), "1.22.1-9");
    assert_eq!(bench.observe("packages:gone"), Observed::Absent);
    assert_eq!(bench.observe("packages:other"), Observed::Absent);
    bench.refused("packages:nginx", "present", "never installed or removed");
}

#[test]
fn a_machine_without_gpus_says_so_and_none_is_set() {
    in_namespaces!();
    let mut bench = Bench::machine();
    let found = bench.observe("gpu:77.ecc");
    assert!(matches!(&found, Observed::Unseen(why) if why.contains("no GPU")), "{found:?}");
    bench.refused("gpu:0.ecc", "on", "observed, not set");
    bench.refused("gpu:0.ecc", "perhaps", "on or off");
}

#[test]
fn the_machines_own_packages_are_seen() {
    in_namespaces!();
    let mut bench = Bench::machine();
    assert!(Path::new("/var/lib/dpkg/status").exists(), "this test needs a machine with dpkg");
    assert!(value::agrees(&key("packages:dpkg"), &value("present"), &bench.observe("packages:dpkg")));
    assert!(bench.value("packages:dpkg").starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(bench.observe("packages:no-such-package"), Observed::Absent);
}

// Changes.

#[test]
fn every_change_behind_the_agents_back_is_named() {
    in_namespaces!();
    let mut bench = Bench::confined();
    let root = bench.root();
    bench.set("files:/etc/motd", "x");
    bench.set("kernel:vm.swappiness", "10");
    bench.watch(&["files:/etc/motd", "files:/later/on", "kernel:vm.swappiness", "mounts:/mnt"]);
    fs::write(root.join("etc/motd"), "y").unwrap();
    bench.expect_changed("files:/etc/motd");
    fs::set_permissions(root.join("etc/motd"), fs::Permissions::from_mode(0o600)).unwrap();
    bench.expect_changed("files:/etc/motd");
    fs::rename(root.join("etc"), root.join("etc2")).unwrap();
    bench.expect_changed("files:/etc/motd");
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("etc/motd"), "z").unwrap();
    bench.expect_changed("files:/etc/motd");
    fs::remove_file(root.join("etc/motd")).unwrap();
    bench.expect_changed("files:/etc/motd");
    fs::create_dir(root.join("later")).unwrap();
    fs::write(root.join("later/on"), "z").unwrap();
    bench.expect_changed("files:/later/on");
    fs::write(root.join("proc/sys/vm/swappiness"), "60\n").unwrap();
    bench.expect_changed("kernel:vm.swappiness");
    fs::create_dir(root.join("mnt")).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(root.join("mnt")).status().unwrap();
    assert!(mounted.success());
    bench.expect_changed("mounts:/mnt");
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount_remount(root.join("mnt"), none, "size=77k").unwrap();
    bench.expect_changed("mounts:/mnt");
}

#[test]
fn a_change_of_a_link_or_a_real_parameter_is_named() {
    in_namespaces!();
    let mut bench = Bench::machine();
    bench.watch(&["network:lo.state", "network:lo.address", "kernel:net.ipv4.ip_forward", "gpu:0.ecc"]);
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    bench.expect_changed("kernel:net.ipv4.ip_forward");
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    bench.expect_changed("network:lo.state");
    assert!(Command::new("ip").args(["address", "add", "10.9.0.1/32", "dev", "lo"]).status().unwrap().success());
    bench.expect_changed("network:lo.address");
}

#[test]
fn what_is_not_watched_any_more_is_not_named() {
    let mut bench = Bench::confined();
    bench.set("files:/a", "x");
    bench.set("files:/b", "x");
    bench.watch(&["files:/a", "files:/b"]);
    bench.host.watch(&[key("files:/b")]);
    fs::write(bench.root().join("a"), "y").unwrap();
    fs::write(bench.root().join("b"), "y").unwrap();
    let named = bench.runtime.block_on(bench.host.changed());
    assert_eq!(named, [key("files:/b")]);
}

#[test]
fn nothing_is_left_open_after_many_rounds() {
    let mut bench = Bench::confined();
    let names: Vec<String> = (0..50).map(|i| format!("files:/d{i}/f")).collect();
    for name in &names {
        bench.set(name, "x");
    }
    let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
    bench.host.watch(&keys);
    bench.expect_changed("files:/d0/f");
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..50 {
        bench.runtime.block_on(bench.host.observe(&keys));
        bench.set("files:/d0/f", "y");
        bench.set("files:/d0/f", "x");
    }
    // Other tests of this process open and close files of their own.
    assert!(open() < before + 50, "{before} descriptors became {}", open());
}

/// Prints what watching costs; see docs/host.md for figures. Run it alone:
/// `cargo test -p muster idle_cost -- --ignored --nocapture`
#[test]
#[ignore = "measures for a minute"]
fn idle_cost_of_two_thousand_items() {
    in_namespaces!();
    let mut bench = Bench::confined();
    let mut names = Vec::new();
    for i in 0..1_500 {
        names.push(format!("files:/etc/d{}/f{i}", i % 100));
        bench.set(&names[i], &"some text of a file\n".repeat(20));
    }
    for i in 0..480 {
        names.push(format!("kernel:vm.p{i}"));
        bench.set(&names[1_500 + i], "10");
    }
    for i in 0..20 {
        names.push(format!("mounts:/mnt/m{i}"));
        bench.set(&names[1_980 + i], "tmpfs tmpfs size=1m");
    }
    let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
    bench.host.watch(&keys);
    bench.expect_changed(&names[0]);
    let cost = || {
        let text = fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<u64> =
            text.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2).map(|n| n.parse().unwrap()).collect();
        // In hundredths of a second.
        fields[0] + fields[1]
    };
    std::thread::sleep(Duration::from_secs(2));
    let before = cost();
    std::thread::sleep(Duration::from_mins(1));
    let spent = cost() - before;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let memory = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    println!("2000 items for 60 s: {spent} hundredths of a second of a core, {memory}");
    let mut latest = Duration::ZERO;
    for i in 0..20 {
        let name = names[i * 75].clone();
        let began = std::time::Instant::now();
        fs::write(bench.root().join(name.trim_start_matches("files:/")), format!("{i}")).unwrap();
        bench.expect_changed(&name);
        latest = latest.max(began.elapsed());
    }
    println!("a changed file is named after at most {latest:?}");
    let mut latest = Duration::ZERO;
    for i in 0..10 {
        let name = format!("kernel:vm.p{i}");
        let began = std::time::Instant::now();
        fs::write(bench.root().join(format!("proc/sys/vm/p{i}")), "11\n").unwrap();
        bench.expect_changed(&name);
        latest = latest.max(began.elapsed());
    }
    println!("a changed parameter is named after at most {latest:?}");
}
