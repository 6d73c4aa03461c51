//! `baton store backup`: all that a store holds, into a directory or a stream.

use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use anyhow::Context;
use batonmq::client::{Backup, Client};
use batonmq::offline::{self, Made, Origin};
use batonmq::store::archive;
use batonmq::store::digest::Digest;
use batonmq::store::image::Image;
use bytes::{Buf, Bytes};
use clap::Args;
use tokio::runtime::Builder;

use super::restore::{Restored, made_text};
use crate::cli::client::ClientArgs;
use crate::cli::exit::End;
use crate::cli::output::{Progress, bytes_text, counted, print_json};

/// Parts that may have been received and not written.
const PARTS_AHEAD: usize = 2;
/// Bytes of an archive that are passed on at a time.
const READ_BYTES: usize = 1 << 20;
/// The name that stands for the standard output.
const STREAM: &str = "-";

/// Back up a store while it is served: everything that is confirmed, as of one moment.
///
/// Publishing and consuming go on; space of messages that are settled meanwhile comes free when the backup ends. A
/// directory becomes a store in the same mode, which `restore` takes, a node could serve, and the sqlite3 shell can
/// read; a stream is an archive, which `restore` takes. Nothing that exists is overwritten. With --store the store is
/// read from its files, while no node serves it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  baton store backup /backups/monday
  baton store backup - | gzip > monday.baton.gz
  baton store backup /backups/monday --store /srv/baton")]
pub struct BackupArgs {
    /// Where to: a directory that is missing or empty, or - for an archive on standard output
    #[arg(value_name = "DIR")]
    to: PathBuf,
    /// The shared directory of a store that no node serves, instead of asking the master
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The result as JSON: store_id, mode, messages, bytes; on standard error where the archive is on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Runs it.
pub fn run(args: &BackupArgs) -> anyhow::Result<()> {
    if args.to == Path::new(STREAM) {
        return to_stream(args);
    }
    let mut progress = None;
    let mut watch = |done: offline::Done| {
        if done.of > 0 {
            progress.get_or_insert_with(|| Progress::new(Some(done.of), "messages")).at(done.finished());
        }
    };
    let made = match &args.store {
        Some(store) => offline::make(Origin::directory(store)?, &args.to, None, &mut watch)?,
        None => {
            let mut parts = Parts::of_master(&args.client)?;
            let origin = Origin::archive(Box::new(parts.take()));
            let made = origin.and_then(|origin| offline::make(origin, &args.to, None, &mut watch));
            // What the node says tells more than that the archive was cut off, or is none.
            parts.end()?;
            made?
        }
    };
    drop(progress);
    tell(args, &made)
}

fn tell(args: &BackupArgs, made: &Made) -> anyhow::Result<()> {
    if args.json {
        return print_json(&Restored::new(made));
    }
    crate::cli::output::print_line(made_text(&args.to, made))
}

fn to_stream(args: &BackupArgs) -> anyhow::Result<()> {
    let output = io::stdout();
    if output.is_terminal() {
        let text = "an archive is nothing for a terminal: redirect it, as in `baton store backup - > file`";
        return Err(End::Usage(text.to_owned()).into());
    }
    let mut output = output.lock();
    let (origin, digest) = match &args.store {
        Some(store) => {
            let looked = offline::look(store)?;
            let origin = archive::Origin {
                store_id: looked.store_id.clone(),
                mode: looked.manifest.mode,
                made_at: offline::wall_clock(),
            };
            let mut image: Box<dyn Image> = looked.image;
            let digest = archive::write(image.as_mut(), &origin, &mut output)?;
            (origin, digest)
        }
        None => {
            let mut parts = Parts::of_master(&args.client)?;
            let mut written = Ok(());
            let read = pass_on(parts.take(), &mut output, &mut written);
            written.context("cannot write to standard output")?;
            // What the node says tells more than that the archive was cut off, or is none.
            parts.end()?;
            read?
        }
    };
    output.flush().context("cannot write to standard output")?;
    if args.json {
        eprintln!("{}", serde_json::to_string(&Restored::archived(&origin, &digest))?);
    } else {
        let (messages, bytes) = (digest.messages(), digest.bytes());
        eprintln!("backed up: {}, {}", counted(messages, "message"), bytes_text(bytes));
    }
    Ok(())
}

/// Writes an archive as it is received, and reads it meanwhile: so its checksums are known to be right.
fn pass_on(
    received: Received,
    output: &mut dyn Write,
    written: &mut io::Result<()>,
) -> anyhow::Result<(archive::Origin, Digest)> {
    let progress = Progress::new(None, "bytes");
    let passing = Passing { received, output, written, progress };
    let mut reader = archive::Reader::open(BufReader::with_capacity(READ_BYTES, passing))?;
    while reader.next_messages()?.is_some() {}
    Ok((reader.origin().clone(), reader.digest().clone()))
}

/// Parts of an archive that are written before they are read.
struct Passing<'a> {
    received: Received,
    output: &'a mut dyn Write,
    /// Why no more is written.
    written: &'a mut io::Result<()>,
    progress: Progress,
}

impl Read for Passing<'_> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let count = self.received.read(piece)?;
        if let Err(error) = self.output.write_all(&piece[..count]) {
            let kind = error.kind();
            *self.written = Err(error);
            return Err(kind.into());
        }
        self.progress.add(count as u64);
        Ok(count)
    }
}

/// The archive that a master hands out, received by a thread of its own.
pub struct Parts {
    received: Option<Receiver<Bytes>>,
    receiving: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Parts {
    /// Begins to receive one.
    pub fn of_master(args: &ClientArgs) -> anyhow::Result<Self> {
        let (sender, received) = sync_channel(PARTS_AHEAD);
        let options = args.options();
        let receiving = std::thread::spawn(move || {
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.context("cannot start the runtime")?.block_on(async {
                let client = Client::connect(options).await?;
                let mut backup: Backup = client.backup().await?;
                while let Some(part) = backup.next_part().await? {
                    // Whoever has stopped to read says why.
                    if sender.send(part).is_err() {
                        break;
                    }
                }
                client.close().await;
                Ok(())
            })
        });
        Ok(Self { received: Some(received), receiving: Some(receiving) })
    }

    /// What is received.
    pub fn take(&mut self) -> Received {
        Received { parts: self.received.take(), part: Bytes::new() }
    }

    /// Waits for the end; an error says why nothing more came.
    pub fn end(&mut self) -> anyhow::Result<()> {
        match self.receiving.take().map(std::thread::JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => {
                anyhow::bail!("the thread that receives the backup has panicked, please report it")
            }
            None => Ok(()),
        }
    }
}

/// The bytes of an archive as they come.
pub struct Received {
    parts: Option<Receiver<Bytes>>,
    part: Bytes,
}

impl Iterator for Received {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.parts.as_ref()?.recv().ok()
    }
}

impl Read for Received {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.next() {
                Some(part) => self.part = part,
                None => return Ok(0),
            }
        }
        let count = piece.len().min(self.part.len());
        self.part.copy_to_slice(&mut piece[..count]);
        Ok(count)
    }
}
