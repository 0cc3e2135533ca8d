//! Asks a model in this process: `cargo run --example in_process -- MODEL.gguf "Review: It broke after two days."`

use std::io::Write as _;
use std::sync::Arc;

use chainette::engine::Message;
use chainette::engine::embedded::{Generate, GgufText, PoolConfig, Pools, TextGenerator};
use futures::future::join_all;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("which model?")?;
    let pools = Pools::new();
    let writer = pools.add::<TextGenerator>(PoolConfig::new("writer"), Arc::new(GgufText::new(model)));
    pools.start();
    let replies = arguments.map(|text| {
        writer.ask(Generate {
            messages: vec![Message::system("Grade the product review."), Message::user(text)],
            max_tokens: Some(64),
            ..Generate::default()
        })
    });
    for reply in join_all(replies).await {
        let reply = reply?;
        writeln!(
            std::io::stdout(),
            "{}  ({} tokens in, {} out)",
            reply.text,
            reply.prompt_tokens,
            reply.reply_tokens
        )?;
    }
    pools.shutdown().await;
    Ok(())
}
