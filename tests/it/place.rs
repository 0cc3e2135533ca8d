//! A machine for provisioning: a folder with programs, one with files, and nothing else that could be found.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use chainette::engine::provision::{HubSettings, Machine};
use serde_json::Value;

use crate::gguf_file::small;
use crate::harness::BINARY;

/// A machine: a folder with programs, one with files, and nothing else that could be found.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub hub: Option<String>,
    pub env: Vec<(&'static str, String)>,
}

/// What an invocation did.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("JSON: {}{}", self.stdout, self.stderr))
    }

    /// The only server's field.
    pub fn of(&self, field: &str) -> Value {
        let json = self.json();
        assert_eq!(json["engines"].as_array().map(Vec::len), Some(1), "{json:#}");
        json["engines"][0][field].clone()
    }

    pub fn words(&self) -> Vec<String> {
        let words = self.of("arguments");
        let words = words.as_array().expect("a list").iter();
        words
            .map(|word| word.as_str().expect("a text").to_owned())
            .collect()
    }
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for folder in ["bin", "files"] {
            fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        let place = Self {
            dir,
            hub: None,
            env: Vec::new(),
        };
        place.file("m.gguf", small());
        place
    }

    /// With a llama-server that knows every flag of ours, a vLLM and a TGI.
    pub fn with_programs() -> Self {
        let place = Self::new();
        place.program(
            "llama-server",
            "echo 'asked' >> \"$(dirname \"$0\")/asked\"\necho '--metrics  --ui, --no-ui, --no-webui --cache-ram N'",
        );
        place.program("vllm", "exit 1");
        place.program("text-generation-launcher", "exit 1");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("files").join(name)
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("the folder is writable");
    }

    pub fn program(&self, name: &str, body: &str) {
        let path = self.dir.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("the folder is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
    }

    /// GPUs, as `nvidia-smi` would list them; MiB each.
    pub fn gpus(&self, memory: &[u64]) {
        let lines: Vec<String> = memory
            .iter()
            .enumerate()
            .map(|(at, mib)| format!("echo '{at}, {mib}'"))
            .collect();
        self.program("nvidia-smi", &lines.join("\n"));
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let bin = self.dir.path().join("bin");
        let mut command = Command::new(BINARY);
        command
            .current_dir(self.path(""))
            .args(args)
            // The scripts need a few programs of the system, which brings no engine and no `nvidia-smi`.
            .env("PATH", format!("{}:/bin:/usr/bin", bin.display()))
            .env("HOME", self.dir.path().join("home"))
            .env("XDG_STATE_HOME", self.dir.path().join("state"))
            .env("HF_HOME", self.dir.path().join("hf"))
            .env("HF_ENDPOINT", self.hub.as_deref().unwrap_or("http://127.0.0.1:9"))
            .env("NO_COLOR", "1");
        for name in [
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "HF_HUB_CACHE",
            "CUDA_VISIBLE_DEVICES",
            "RUST_BACKTRACE",
            "http_proxy",
        ] {
            command.env_remove(name);
        }
        for (name, value) in &self.env {
            command.env(name, value);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().expect("the command starts");
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.replace(&self.dir.path().display().to_string(), "[dir]")
        };
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Declares one engine `e` and provisions it.
    pub fn engine(&self, fields: &str, more: &[&str]) -> Ran {
        self.file("engines.yaml", format!("engines:\n  e: {{{fields}}}\n"));
        self.run(&[&["engine", "provision", "engines.yaml", "--json"], more].concat())
    }

    pub fn planned(&self, fields: &str) -> Ran {
        let ran = self.engine(fields, &["--dry-run"]);
        assert_eq!(ran.code, 0, "{fields}: {}", ran.stderr);
        ran
    }

    /// How often the program was asked for its flags.
    pub fn asked(&self) -> usize {
        let asked = fs::read_to_string(self.dir.path().join("bin/asked")).unwrap_or_default();
        asked.lines().count()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A model of three MiB.
pub fn large() -> Vec<u8> {
    let mut bytes = small();
    bytes.extend((0..3 << 20).map(|n: u32| (n % 251) as u8));
    bytes
}

/// A machine as a library's user may make one up.
pub fn machine(place: &Place) -> Machine {
    let hub = HubSettings {
        cache: Some(place.dir.path().join("hf/hub")),
        endpoint: place.hub.clone().unwrap_or_default(),
        ..HubSettings::default()
    };
    Machine {
        path: vec![place.dir.path().join("bin")],
        ram: 8 << 30,
        hub,
        ..Machine::default()
    }
}
