//! A topic read as a table: the newest value of each key.
//!
//! Whether the topic keeps nothing else does not matter: it is browsed from its start to its end, and what is older is
//! passed over. A client has the table in its memory, and of each value no more than that: the frames in which they
//! came are given back.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Client;
use super::delivery::Browsed;
use super::error::ClientError;
use crate::model::id::Offset;
use crate::model::message::Message;

/// Messages that are asked for at a time.
const BATCH: u32 = 10_000;

impl Client {
    /// The newest message of each key of a topic, in the order of keys. Keys whose newest message has an empty body are
    /// gone, and so are messages without a key and those of priorities above 0.
    ///
    /// The topic is read until nothing follows: what is published meanwhile may be in the table, and where more is
    /// published than can be read it never ends.
    ///
    /// # Errors
    /// Where the topic does not exist, or there is no master.
    pub async fn table(&self, topic: &str) -> Result<BTreeMap<Bytes, Browsed>, ClientError> {
        self.newest(topic, None).await
    }

    /// The newest message of one key of a topic; `None` where there is none, or its body is empty. Takes as long as
    /// [`table`](Self::table), and the memory of one message.
    ///
    /// # Errors
    /// As for [`table`](Self::table).
    pub async fn table_value(&self, topic: &str, key: &[u8]) -> Result<Option<Browsed>, ClientError> {
        Ok(self.newest(topic, Some(key)).await?.pop_first().map(|(_, newest)| newest))
    }

    async fn newest(
        &self,
        topic: &str,
        only: Option<&[u8]>,
    ) -> Result<BTreeMap<Bytes, Browsed>, ClientError> {
        let mut newest: BTreeMap<Bytes, Browsed> = BTreeMap::new();
        let mut from = Offset(0);
        loop {
            let page = self.browse(topic, from, BATCH).await?;
            let Some(last) = page.last() else { return Ok(newest) };
            from = last.offset.next();
            for browsed in page {
                let Some(key) = &browsed.message.key else { continue };
                if only.is_some_and(|only| only != key.as_ref()) {
                    continue;
                }
                if browsed.message.body.is_empty() {
                    newest.remove(key);
                } else {
                    let key = Bytes::copy_from_slice(key);
                    let message = apart(browsed.message, key.clone());
                    newest.insert(key, Browsed { message, ..browsed });
                }
            }
        }
    }
}

/// A message that does not share the memory of the frame in which it came.
fn apart(message: Message, key: Bytes) -> Message {
    let copied = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
    let headers = message.headers.into_iter().map(|(name, value)| (name, copied(value)));
    Message { key: Some(key), headers: headers.collect(), body: copied(message.body), ..message }
}
