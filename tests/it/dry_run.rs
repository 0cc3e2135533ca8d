//! `run --dry-run`: what is shown, and that nothing happens.

use crate::harness::Bench;
use crate::server::{Answer, TestServer};

const CHAIN: &str = r#"
name: dry
vars: {tone: neutral}
models:
  Sentiment: {label: good | bad, why: string?}
engines:
  small: {backend: vllm, model: qwen, endpoint: "ENDPOINT", api_key_env: CHAINETTE_NO_SUCH_KEY, headers: {x-team: very-secret}, reasoning: false}
  local: {backend: ollama, model: llama, endpoint: "ENDPOINT?key=quite-secret", context: 4096}
steps:
  - {id: tidy, apply: {jq: '{text: (.text | ascii_upcase), n}'}}
  - id: sentiment
    engine: small
    when: n != 1
    system_prompt: You grade in a {{ vars.tone }} tone.
    user_prompt: "Review: {{ text }}"
    output_model: Sentiment
    sampling: {temperature: 0, max_tokens: 100, seed: 7}
  - parallel:
      - branch: fr
        join: fr
        steps:
          - {id: translate, engine: local, user_prompt: "To French: {{ chain_input.text }}"}
      - branch: checked
        when: sentiment.label == "bad"
        steps:
          - {id: look, engine: local, user_prompt: "Look at {{ chain_input.text }}"}
  - {id: after, apply: {jq: '{n: .label}'}}
  - {id: digest, engine: small, user_prompt: "{{ sentiment.label }} {{ fr.text }} {{ n }}", when: sentiment}
"#;

fn bench(chain: &str, input: &str) -> (Bench, TestServer) {
    let server = TestServer::start(|_| Answer::status(500, "nobody may ask"));
    let bench = Bench::new(&chain.replace("ENDPOINT", &server.url()), input);
    (bench, server)
}

#[test]
fn the_first_requests_are_shown_and_nothing_is_sent() {
    let input = "{\"text\":\"fine\",\"n\":0}\n{\"text\":\"skipped\",\"n\":1}\nnot json\n{\"text\":\"too late\",\"n\":3}\n";
    let (bench, server) = bench(CHAIN, input);
    let ran = bench.run(&["--dry-run", "--no-icons"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(!ran.out.exists(), "OUT is not made");
    assert_eq!(server.stats().asked, 0);
    assert!(!ran.stdout.contains("very-secret") && !ran.stdout.contains("quite-secret"));
    let shown = ran
        .stdout
        .replace(&format!("127.0.0.1:{}", server.port()), "HOST");
    insta::assert_snapshot!("dry_run", shown);

    // What is shown is what is sent.
    let real = bench
        .command(&["--limit", "1"])
        .env("CHAINETTE_NO_SUCH_KEY", "k")
        .output();
    assert!(real.expect("it starts").status.code().is_some());
    assert!(server.stats().asked > 0);
}

#[test]
fn template_errors_of_the_first_rows_are_shown() {
    let chain = "
name: dry
engines: {e: {backend: openai, model: m, endpoint: ENDPOINT}}
steps:
  - {id: fan, apply: {jq: '.list[] | {v: .}'}}
  - {id: ask, engine: e, user_prompt: '{{ v.name }}', sampling: {max_tokens: 9}}
";
    let input =
        "{\"list\":[{\"name\":\"a\"},{},{\"name\":\"c\"},{\"name\":\"d\"}]}\n{\"list\":[]}\n{\"list\":3}\n";
    let (bench, server) = bench(chain, input);
    let ran = bench.run(&["--dry-run", "--no-icons"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let shown = ran
        .stdout
        .replace(&format!("127.0.0.1:{}", server.port()), "HOST");
    insta::assert_snapshot!("dry_run_errors", shown);
    assert_eq!(bench.run(&["--dry-run", "--limit", "0"]).code, 0);
}

#[test]
fn bad_chains_and_inputs_are_exit_2() {
    let (bench, _server) = bench(
        "name: x\nsteps: [{id: a, engine: none, user_prompt: hi}]\n",
        "{}\n",
    );
    let ran = bench.run(&["--dry-run"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
    let (bench, _server) = self::bench(CHAIN, "{}\n");
    std::fs::remove_file(bench.dir.path().join("in.jsonl")).expect("it is there");
    let ran = bench.run(&["--dry-run"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("in.jsonl"), "{}", ran.stderr);
}
