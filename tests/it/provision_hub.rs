//! Models that come from the hub: once, whole, and the right ones.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use chainette::engine::provision::{Machine, PrepareError, PreparedEngine, Progress, plan_all, prepare};
use chainette::spec::{Backend, EngineSpec, Resources};
use serde_json::{Value, json};

use crate::gguf_file::small;
use crate::harness::{copy, listing};
use crate::hub::{COMMIT, Fault, Hub};
use crate::place::{Place, large, machine, sha256};

#[test]
fn a_model_comes_from_the_hub_once() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &small()), ("README.md", b"hello")]);
    place.hub = Some(hub.url());
    let fields = "backend: llamacpp, model: 'hf:org/repo/m.gguf'";
    let plan = place.planned(fields);
    assert_eq!(
        (plan.of("downloads"), plan.of("need")),
        (json!("hf:org/repo/m.gguf"), Value::Null)
    );
    assert_eq!(hub.take_log(), Vec::<String>::new(), "a dry run asks nobody");
    let first = place.engine(fields, &[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(first.stderr.contains("e: fetching"), "{}", first.stderr);
    let model = first.of("model");
    let path = format!("[dir]/hf/hub/models--org--repo/snapshots/{COMMIT}/m.gguf");
    assert_eq!(model["path"], path);
    assert_eq!(model["digest"], format!("hf:{COMMIT}:{}", sha256(&small())));
    assert!(!hub.take_log().is_empty());
    // From now on nobody is asked.
    let second = place.engine(fields, &[]);
    assert_eq!(
        (second.of("model"), second.of("spec_digest")),
        (model, first.of("spec_digest"))
    );
    assert_eq!(hub.take_log(), Vec::<String>::new());
    assert!(place.planned(fields).of("need")["ram"].as_u64().is_some());
    // A pin is compared with the file, wherever it came from.
    let pinned = |pin: &str| {
        place.engine(
            &format!("backend: llamacpp, model: {{id: 'hf:org/repo/m.gguf', sha256: '{pin}'}}"),
            &[],
        )
    };
    assert_eq!(pinned(&sha256(&small())).code, 0);
    assert_eq!(pinned(&"ab".repeat(32)).code, 1);
    // Its only GGUF file needs no name; of several one must be named.
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo@main'", &[]);
    assert_eq!(ran.of("model")["path"], path, "{}", ran.stderr);
    let many = Hub::start(&[
        ("a.gguf", &small()),
        ("sub/b.gguf", &small()),
        ("mmproj-a.gguf", b""),
    ]);
    place.hub = Some(many.url());
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo'", &[]);
    assert_eq!(ran.code, 1);
    let told = ran
        .stderr
        .lines()
        .filter(|line| !line.contains("fetching"))
        .collect::<Vec<_>>()
        .join("\n");
    insta::assert_snapshot!("provision_several_files", told);
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo/sub/b.gguf'", &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // Without a network the one that is there will do.
    place.hub = None;
    place.env.push(("HF_HUB_OFFLINE", "1".to_owned()));
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo'", &[]);
    assert_eq!(ran.of("model")["path"], path, "{}", ran.stderr);
    let ran = place.engine("backend: llamacpp, model: 'hf:org/other'", &["--dry-run"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("HF_HUB_OFFLINE"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_folder_of_weights_comes_from_the_hub_without_what_nobody_needs() {
    let mut place = Place::with_programs();
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let hub = Hub::start(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"a\": 1}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", &[1; 3000]),
        ("model-2.safetensors", &[2; 3000]),
        ("consolidated.safetensors", &[3; 3000]),
        ("pytorch_model.bin", &[4; 3000]),
        ("original/model.pth", &[5; 3000]),
        ("README.md", b"hello"),
    ]);
    place.hub = Some(hub.url());
    let ran = place.engine("backend: vllm, model: 'hf:org/repo@v1'", &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.of("model")["digest"], format!("hf:{COMMIT}"));
    let folder = place
        .dir
        .path()
        .join(format!("hf/hub/models--org--repo/snapshots/{COMMIT}"));
    let expected = [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(listing(&folder), expected.map(str::to_owned).into());
    hub.take_log();
    assert_eq!(
        place.engine("backend: vllm, model: 'hf:org/repo@v1'", &[]).code,
        0
    );
    assert_eq!(hub.take_log(), Vec::<String>::new(), "all of it is here");
    // One that is not whole is completed.
    fs::remove_file(folder.join("model-2.safetensors")).expect("it is there");
    let ran = place.engine("backend: vllm, model: 'hf:org/repo@v1'", &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(folder.join("model-2.safetensors").is_file());
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo'", &[]);
    assert!(
        ran.code == 1 && ran.stderr.contains("holds no GGUF file"),
        "{}",
        ran.stderr
    );
}

#[test]
fn an_embedding_model_comes_with_the_parts_that_follow_its_encoder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/vectors/bert_half");
    let parts = [
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    ];
    let files: Vec<(&str, Vec<u8>)> = parts
        .iter()
        .map(|name| (*name, fs::read(folder.join(name)).expect("it is there")))
        .chain([
            ("onnx/config.json", vec![1]),
            ("gguf/m.gguf", vec![3]),
            ("pytorch_model.bin", vec![2]),
        ])
        .collect();
    let served: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
    let mut place = Place::new();
    let hub = Hub::start(&served);
    place.hub = Some(hub.url());
    let fields = "backend: embedded, model: 'hf:org/repo'";
    let ran = place.engine(fields, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let name = format!("hf/hub/models--org--repo/snapshots/{COMMIT}");
    assert_eq!(ran.of("model")["path"], format!("[dir]/{name}"));
    let snapshot = place.dir.path().join(&name);
    assert!(parts.iter().all(|part| snapshot.join(part).is_file()));
    assert_eq!(listing(&snapshot).len(), 4 + 2, "{:?}", listing(&snapshot));
    // One that is not whole is completed.
    let lost = snapshot.join("2_Dense/config.json");
    fs::remove_file(&lost).expect("it is there");
    let ran = place.engine(fields, &[]);
    assert_eq!((ran.code, lost.is_file()), (0, true), "{}", ran.stderr);
    // Now nobody is asked.
    hub.take_log();
    assert_eq!(place.engine(fields, &[]).code, 0);
    assert_eq!(hub.take_log(), Vec::<String>::new());
    // Another program keeps only the encoder: how its vectors become one is not guessed.
    let mut partial = Place::new();
    copy(&place.dir.path().join("hf"), &partial.dir.path().join("hf"));
    let modules = partial.dir.path().join(&name).join("modules.json");
    fs::remove_file(&modules).expect("it is there");
    partial.env.push(("HF_HUB_OFFLINE", "1".to_owned()));
    let ran = partial.engine(fields, &[]);
    assert!(
        ran.code == 1 && ran.stderr.contains("not all of it"),
        "{}",
        ran.stderr
    );
    partial.env.clear();
    partial.hub = Some(hub.url());
    let ran = partial.engine(fields, &[]);
    assert_eq!((ran.code, modules.is_file()), (0, true), "{}", ran.stderr);
    // Weights in PyTorch's own form are not even fetched.
    let old = Hub::start(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("pytorch_model.bin", b"weights"),
    ]);
    let mut place = Place::new();
    place.hub = Some(old.url());
    let ran = place.engine(fields, &[]);
    assert!(
        ran.code == 1 && ran.stderr.contains("holds no safetensors"),
        "{}",
        ran.stderr
    );
    assert!(!old.take_log().iter().any(|asked| asked.contains("pytorch_model")));
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &large())]);
    place.hub = Some(hub.url());
    let fields = "backend: llamacpp, model: 'hf:org/repo/m.gguf'";
    hub.fault(
        "m.gguf",
        Fault::Cut {
            after: 1_200_000,
            times: 2,
        },
    );
    let ran = place.engine(fields, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("trying again"), "{}", ran.stderr);
    let path = ran.of("model")["path"]
        .as_str()
        .expect("a path")
        .replace("[dir]", &place.dir.path().display().to_string());
    assert_eq!(sha256(&fs::read(&path).expect("it is there")), sha256(&large()));
    let log = hub.take_log();
    assert!(
        log.iter().any(|line| line.ends_with("bytes=1200000-")),
        "{log:#?}"
    );
    assert!(
        log.iter().any(|line| line.ends_with("bytes=2400000-")),
        "{log:#?}"
    );
}

#[test]
fn what_was_there_before_is_no_progress() {
    let mut place = Place::with_programs();
    let content = vec![7; 3 << 20];
    let hub = Hub::start(&[("model.gguf", &content)]);
    place.hub = Some(hub.url());
    // Were it tried often enough, it would come.
    let (at, times) = (2 << 20, 9);
    hub.fault("model.gguf", Fault::Stuck { at, times });
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo/model.gguf'", &[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot be fetched"), "{}", ran.stderr);
}

#[test]
fn a_file_that_is_not_whole_or_not_right_is_never_taken() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &large())]);
    place.hub = Some(hub.url());
    let fields = "backend: llamacpp, model: 'hf:org/repo/m.gguf'";
    let blobs = place.dir.path().join("hf/hub/models--org--repo/blobs");
    let told = |fault: Fault| {
        hub.fault("m.gguf", fault);
        let ran = place.engine(fields, &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        let whole = fs::read_dir(&blobs).into_iter().flatten().flatten();
        let whole: Vec<_> = whole.filter(|blob| blob.path().extension().is_none()).collect();
        assert!(whole.is_empty(), "it is not in the cache: {whole:?}");
        let plan = place.planned(fields);
        assert_eq!(plan.of("downloads"), "hf:org/repo/m.gguf");
        let passing = |line: &&str| {
            !line.contains("fetching") && !line.contains("verifying") && !line.contains("trying again")
        };
        let text = ran.stderr.lines().filter(passing).collect::<Vec<_>>().join("\n");
        text.replace(&hub.url(), "[hub]") + "\n"
    };
    let all = [
        told(Fault::Wrong),
        told(Fault::Status(500, 99)),
        told(Fault::Status(404, 1)),
        told(Fault::Status(403, 1)),
        told(Fault::Etag("../../../../escaped")),
        told(Fault::Cut { after: 0, times: 99 }),
    ];
    insta::assert_snapshot!("provision_hub_faults", all.concat());
    // Bytes of another try, and a server that sends everything though only the rest was asked for.
    let part = blobs.join(sha256(&large())).with_extension("part");
    fs::write(&part, &large()[..1000]).expect("the folder is there");
    hub.fault("m.gguf", Fault::Whole);
    let ran = place.engine(fields, &[]);
    assert_eq!(ran.code, 0, "it starts anew: {}", ran.stderr);
    hub.heal();
    // A rest that is whole already, from a process that was killed then.
    fs::remove_dir_all(place.dir.path().join("hf")).expect("it is there");
    fs::create_dir_all(&blobs).expect("a folder");
    fs::write(&part, large()).expect("the folder is there");
    let ran = place.engine(fields, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn a_private_model_needs_a_token_that_is_never_shown() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &small())]);
    hub.lock("hf_planted_secret");
    place.hub = Some(hub.url());
    let fields = "backend: llamacpp, model: 'hf:org/repo/m.gguf', api_key_env: MY_KEY";
    let ran = place.engine(fields, &[]);
    assert!(
        ran.code == 1 && ran.stderr.contains("needs HF_TOKEN"),
        "{}",
        ran.stderr
    );
    place.env.push(("HF_TOKEN", "hf_wrong_secret".to_owned()));
    let wrong = place.engine(fields, &[]);
    assert!(
        wrong.code == 1 && wrong.stderr.contains("that HF_TOKEN may read it"),
        "{}",
        wrong.stderr
    );
    place.env = vec![
        ("HF_TOKEN", "hf_planted_secret".to_owned()),
        ("MY_KEY", "sk-planted-secret".to_owned()),
        ("CHAINETTE_LOG", "trace".to_owned()),
    ];
    let right = place.engine(fields, &[]);
    assert_eq!(right.code, 0, "{}", right.stderr);
    assert_eq!(right.of("secret_env"), json!(["LLAMA_API_KEY"]));
    let state = fs::read_dir(place.dir.path().join("state/chainette")).expect("it is there");
    let kept: Vec<String> = state
        .flatten()
        .filter_map(|file| fs::read_to_string(file.path()).ok())
        .collect();
    for text in [
        wrong.stderr,
        wrong.stdout,
        right.stderr,
        right.stdout,
        kept.concat(),
    ] {
        assert!(
            !text.contains("secret\"") && !text.contains("planted") && !text.contains("hf_wrong"),
            "{text}"
        );
    }
}

#[test]
fn a_preparation_can_be_ended_and_goes_on_later() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &large())]);
    place.hub = Some(hub.url());
    let machine = machine(&place);
    let spec = EngineSpec::new("e", Backend::LlamaCpp, "hf:org/repo/m.gguf");
    let state = place.dir.path().join("state");
    let plans = plan_all(
        &[spec.clone(), spec.at("http://127.0.0.1:9")],
        &Resources::default(),
        &machine,
    );
    let plans = plans.expect("nothing is missing");
    assert!(plans[1].is_none(), "someone else's");
    let plan = plans[0].as_ref().expect("ours");
    assert_eq!(
        (plan.need(), plan.downloads()),
        (None, Some("hf:org/repo/m.gguf".to_owned()))
    );
    let mut heard = 0;
    let ended = prepare(plan, 0, &state, &mut |progress| {
        heard += 1;
        match progress {
            Progress::Downloading { done, .. } if done > 0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert!(matches!(ended, Err(PrepareError::Cancelled)), "{ended:?}");
    assert!(heard > 0);
    let prepared = prepare(plan, 1, &state, &mut |_| ControlFlow::Continue(())).expect("it goes on");
    assert_eq!((prepared.label().as_str(), prepared.slots), ("e-1", Some(4)));
    assert_eq!(prepared.url(), format!("http://127.0.0.1:{}", prepared.port));
    let whole: u64 = large().len() as u64;
    assert!(prepared.need.ram > whole && prepared.need.vram.is_empty());
    // What was prepared is data: it survives being written.
    let text = serde_json::to_string(&prepared).expect("JSON");
    assert_eq!(
        serde_json::from_str::<PreparedEngine>(&text).expect("the same"),
        prepared
    );
    // A machine with less memory learns of it when the model is there.
    let small = Machine {
        ram: 1 << 20,
        ..machine
    };
    let plan = plan_all(&[spec], &Resources::default(), &small).expect_err("it never fits");
    assert!(plan[0].what.contains("engines may use 819 KiB here"), "{plan:?}");
}

#[test]
fn two_at_once_fetch_one_model() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &large())]);
    place.hub = Some(hub.url());
    place.file(
        "engines.yaml",
        "engines: {e: {backend: llamacpp, model: 'hf:org/repo/m.gguf', replicas: 2}}\n",
    );
    let both = [0, 1].map(|_| {
        let mut command = place.command(&["engine", "provision", "engines.yaml"]);
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        command.spawn().expect("the command starts")
    });
    for child in both {
        let output = child.wait_with_output().expect("it ends");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let path = place
        .dir
        .path()
        .join(format!("hf/hub/models--org--repo/snapshots/{COMMIT}/m.gguf"));
    assert_eq!(sha256(&fs::read(path).expect("it is there")), sha256(&large()));
}
