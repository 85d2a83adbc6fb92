//! `s3bd init`: makes a volume.

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::{
    exit,
    new_secret::CostArgs,
    say,
    secret::SecretArgs,
    size::{SIZE_HELP, parse_size, show_size},
    target::Target,
};
use crate::{
    format::{header::BLOCK_BYTES_MAX, ids::Codec, slot::Argon2},
    seal::slot::Secret,
    volume::{
        env::Env,
        init::{NewVolume, init},
    },
};

/// Default block size, bytes: what file systems use.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// Make a volume.
#[derive(Debug, Args)]
pub(super) struct Init {
    #[command(flatten)]
    target: Target,
    /// Size of the volume.
    #[arg(short, long, value_parser = parse_size, long_help = format!("Size of the volume: {SIZE_HELP}. A multiple of the block size."))]
    size: u64,
    /// Block size: a power of two from 512 to 16M. Writes of less than a block cost a whole one.
    #[arg(long, value_parser = parse_size, default_value = "4096")]
    block_size: u64,
    /// How data is compressed; what would grow is stored as it is.
    #[arg(long, value_enum, default_value = "zstd")]
    compression: CompressionArg,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    cost: CostArgs,
}

/// The compressions by name.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum CompressionArg {
    /// Fast, and small enough.
    #[default]
    Zstd,
    /// Faster, and less small.
    Lz4,
    /// Slow, and smallest: for what is written once.
    Xz,
    /// Everything as it is.
    None,
}

impl CompressionArg {
    /// The codec of that name.
    pub(super) fn codec(self) -> Codec {
        match self {
            Self::Zstd => Codec::Zstd,
            Self::Lz4 => Codec::Lz4,
            Self::Xz => Codec::Xz,
            Self::None => Codec::Plain,
        }
    }
}

impl Init {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let outside = self.target.outside().await?;
        let cost = self.cost.cost()?;
        let new = New {
            size: self.size,
            block_size: self.block_size,
            compression: self.compression,
            secret: &self.secret,
            cost,
        };
        make(&self.target, &outside.env, new).await
    }
}

/// What a user wants of a new volume.
pub(super) struct New<'a> {
    /// Size, bytes.
    pub(super) size: u64,
    /// Block size, bytes.
    pub(super) block_size: u64,
    pub(super) compression: CompressionArg,
    pub(super) secret: &'a SecretArgs,
    /// Cost of a password's derivation.
    pub(super) cost: Argon2,
}

/// Makes a volume and says so.
pub(super) async fn make(target: &Target, env: &Env, wanted: New<'_>) -> anyhow::Result<()> {
    let size = wanted.size;
    let block_bytes = check(size, wanted.block_size)?;
    let secret = wanted.secret.choose(&target.name()).await?;
    let new = NewVolume {
        size_bytes: size,
        block_bytes,
        compression: wanted.compression.codec(),
        secret: &secret,
        cost: wanted.cost,
    };
    init(env, &new).await.with_context(|| target.name())?;
    say(format_args!(
        "{}: made a volume of {} ({size} bytes), blocks of {block_bytes} bytes, {}",
        target.name(),
        show_size(size),
        match secret {
            Secret::Nothing => "without a password: whoever reads the bucket reads the data",
            Secret::Password(_) => "protected by a password: there is no way in without it",
            Secret::KeyFile(_) => "protected by a key file: there is no way in without it",
            Secret::RecoveryKey(_) => "protected by a recovery key: there is no way in without it",
        },
    ));
    Ok(())
}

fn check(size: u64, block_size: u64) -> anyhow::Result<u32> {
    let block_bytes = u32::try_from(block_size).ok().filter(|block| *block <= BLOCK_BYTES_MAX);
    let block_bytes = block_bytes.filter(|block| block.is_power_of_two() && *block >= 512);
    let Some(block_bytes) = block_bytes else {
        return Err(exit::usage(format!(
            "a block size of {block_size} cannot be: a power of two from 512 to 16M"
        )));
    };
    if !size.is_multiple_of(block_size) {
        let below = size / block_size * block_size;
        let above = below.saturating_add(block_size);
        let text = format!(
            "a size of {size} bytes is no multiple of the block size {block_size}: say {below} or {above}"
        );
        return Err(exit::usage(text));
    }
    Ok(block_bytes)
}
