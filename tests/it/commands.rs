//! Applies by a command: lines in any order, and commands that misbehave.

use serde_json::json;

use crate::processes::{command, messages, rows};

/// A program that answers each row as `ANSWER` says, with `row` and `n` at hand.
pub fn answering(body: &str) -> String {
    format!(
        "import json, os, sys, time\ndef say(**a): print(json.dumps(a), flush=True)\nfor line in sys.stdin:\n    row = json.loads(line)\n    \
         id, n = row['row_id'], row['item']['n']\n{body}\n"
    )
}

#[test]
fn a_command_answers_lines_in_any_order() {
    let code = "import json, sys\nheld = []\ndef flush():\n    for row in reversed(held):\n        n = row['item']['n']\n        \
                answer = {'row_id': row['row_id'], 'outputs': [{'n': n}, row['row']] if n == 1 else [n] * (n % 3)}\n        \
                if n == 4: answer = {'row_id': row['row_id'], 'error': 'four: no'}\n        print(json.dumps(answer))\n    \
                print(flush=True)\n    held.clear()\nfor line in sys.stdin:\n    held.append(json.loads(line))\n    if len(held) == 3: flush()\nflush()\n";
    // The program holds rows back, so the last ones come when its input ends: never. Nine rows come in threes.
    let ran = command(code, rows(9), "").run(&[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(messages(&ran), ["4: four: no"]);
    assert_eq!(
        ran.values("a"),
        [
            json!({"row_id": "1.0", "n": 1}),
            json!({"row_id": "1.1", "a.row_id": "1", "chain_input": {"n": 1}, "vars": {}}),
            json!({"row_id": "2.0", "value": 2}),
            json!({"row_id": "2.1", "value": 2}),
            json!({"row_id": "5.0", "value": 5}),
            json!({"row_id": "5.1", "value": 5}),
            json!({"row_id": "7", "value": 7}),
            json!({"row_id": "8.0", "value": 8}),
            json!({"row_id": "8.1", "value": 8}),
        ]
    );
}

#[test]
fn a_command_that_misbehaves_fails_only_the_row() {
    let code = answering(
        "    if n == 10: print('not json', flush=True)\n    elif n == 11: say(row_id='999', outputs=[])\n    elif n == 12: say(row_id=id)\n    \
         elif n == 13: say(row_id=id, outputs={'x': 1})\n    elif n == 14: sys.exit(0)\n    elif n == 15: os.abort()\n    \
         elif n == 16: say(row_id=id, error={'code': 7})\n    elif n == 17: say(outputs=[])\n    \
         elif n == 18:\n        say(row_id=id, outputs=[{'twice': 1}])\n        say(row_id=id, outputs=[{'twice': 2}])\n    \
         elif n == 19: time.sleep(1000)\n    elif n == 20:\n        os.close(0)\n        time.sleep(1000)\n    \
         elif n == 21:\n        os.close(1)\n        time.sleep(1000)\n    \
         elif n == 22: sys.stdout.buffer.write(b'\\xff\\n'); sys.stdout.flush()\n    \
         elif n == 23: say(row_id=id, outputs=[{'a': [[]]}, '\\u00e9'])\n    else: say(row_id=id, outputs=[{'n': n}])",
    );
    let ran = command(&code, rows(60), ", timeout: 8s").run(&["--max-errors", "50"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    insta::assert_snapshot!(messages(&ran).join("\n"));
    assert_eq!(ran.fates("a").split('/').next(), Some("60"));
    assert!(
        ran.values("a").contains(&json!({"row_id": "18", "twice": 1})),
        "the first answer counts: {:?}",
        ran.lines("a")
    );
}

#[test]
fn a_line_without_an_end_fails_its_row() {
    let code = answering(
        "    if n == 3:\n        block = 'x' * (1 << 20)\n        while True: sys.stdout.write(block)\n    say(row_id=id, outputs=[{'n': n}])",
    );
    let ran = command(&code, rows(6), "").run(&[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(
        messages(&ran),
        ["3: the worker wrote a line longer than 256 MiB on this row"]
    );
}

#[test]
fn a_command_that_ends_now_and_then_is_started_again() {
    let code = format!(
        "count = 0\n{}",
        answering("    say(row_id=id, outputs=[{'n': n}])\n    count += 1\n    if count == 30: sys.exit(0)",)
    );
    let ran = command(&code, rows(200), "").run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.fates("a"), "200/200/0/0/0/0");
}

/// Its answer stays in a buffer until its input ends. The one test that waits for a constant of the program.
#[test]
fn a_command_that_does_not_flush_is_told_of() {
    let keeps = "import sys\nfor line in sys.stdin: sys.stdout.write('{}')\n";
    let ran = command(keeps, rows(1), ", timeout: 15s").run(&[]);
    let warning = "`a`: the program has been given 1 row and has answered none for 10 s; does it flush after each line?";
    assert_eq!(ran.stderr.matches(warning).count(), 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains(" · waits for the program of `a`")
            || ran.stderr.contains(" | waits for the program of `a`"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        messages(&ran),
        ["0: the worker gave no answer within 15 s on this row"]
    );
}

#[test]
fn a_command_that_answers_nothing_stops_the_run() {
    let greets = "import sys, time\nprint('Ready!', flush=True)\nfor line in sys.stdin: time.sleep(1000)\n";
    let ran = command(greets, rows(300), "").run(&["--max-errors", "3"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("wrote a line that is no answer: `Ready!`"),
        "{}",
        ran.stderr
    );
}
