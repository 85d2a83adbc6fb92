//! The fenced blocks of `docs/format.md`.

/// A block with a name.
pub struct Block {
    pub name: String,
    pub text: String,
}

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/format.md");
    std::fs::read_to_string(path).unwrap()
}

/// The blocks whose fence begins with `kind`.
fn blocks(kind: &str) -> Vec<Block> {
    let document = document();
    let mut found = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        let Some(fence) = line.strip_prefix("```") else { continue };
        let text: String =
            lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        if fence.split(' ').next() == Some(kind) {
            let name = fence.strip_prefix(kind).and_then(|rest| rest.strip_prefix(" name="));
            let name = name.unwrap_or_else(|| panic!("a {kind} block without a name: {line}")).to_owned();
            found.push(Block { name, text });
        }
    }
    found
}

/// All blocks of hexadecimal.
pub fn hex_blocks() -> Vec<Block> {
    blocks("hex")
}

/// The lines of the text block of this name.
pub fn text_block(name: &str) -> Vec<String> {
    let mut blocks = blocks("text");
    let at = blocks.iter().position(|block| block.name == name);
    let block = blocks.swap_remove(at.unwrap_or_else(|| panic!("no block {name}")));
    block.text.lines().map(str::to_owned).collect()
}
