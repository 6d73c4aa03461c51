//! Administration: status, topics, groups, routes, queries, switchover.
//!
//! Requests that have the same effect made once or twice are made again when the connection is lost before the
//! answer came.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Client;
use super::delivery::Browsed;
use super::error::{AttemptError, ClientError};
use super::handshake::{Greeting, greet};
use super::link::Session;
use super::options::ClientOptions;
use super::shared::{Repeat, unexpected};
use super::wait::{RETRY_WAIT, by_chance};
use crate::model::id::{Epoch, Offset, TopicId};
use crate::model::position::Position;
use crate::model::settings::{GroupSettings, Start, TopicSettings};
use crate::model::table::Table;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::RawFrame;
use crate::protocol::request::{Admin, AdminCommand, ReplayTo, Request};
use crate::protocol::response::{
    Explanation, GroupInfo, NodeStatus, Replayed, Reply, Response, RouteInfo, SlotInfo, TopicDescription,
    TopicInfo,
};

/// How long a switchover waits for a standby that has just started.
const STANDBY_WAIT: Duration = Duration::from_secs(2);
/// Longest answer to the question for the status.
const STATUS_BYTES_MAX: u64 = 1 << 20;

/// Asks one node, master or not, for its status; over a connection of its own.
///
/// If the future is dropped, the connection is closed.
///
/// # Errors
/// Where the node cannot be reached or does not answer within `within`.
pub async fn status_of(address: &str, within: Duration) -> Result<NodeStatus, ClientError> {
    match tokio::time::timeout(within, ask_status(address, within)).await {
        Ok(result) => result,
        Err(_) => Err(AttemptError::Silent { address: address.to_owned(), within }.into()),
    }
}

async fn ask_status(address: &str, within: Duration) -> Result<NodeStatus, ClientError> {
    let options = ClientOptions::default();
    let greeting = Greeting { name: options.name, heartbeat: options.heartbeat, epoch_seen: Epoch(0) };
    let mut greeted = greet(address, address, &greeting, within).await?;
    let request = 1;
    let mut output = bytes::BytesMut::new();
    Request::Admin(Admin { request, command: AdminCommand::Status }).encode(&mut output);
    Request::Goodbye.encode(&mut output);
    let failed = |action| {
        move |source: std::io::Error| AttemptError::Io {
            address: address.to_owned(),
            action,
            source: source.into(),
        }
    };
    let not_baton = |source| AttemptError::NotBaton { address: address.to_owned(), source };
    greeted.stream.write_all(&output).await.map_err(failed("write"))?;
    loop {
        while let Some(frame) = RawFrame::cut(&mut greeted.input, STATUS_BYTES_MAX).map_err(not_baton)? {
            match Response::decode(&frame).map_err(not_baton)? {
                Response::Reply(1, Ok(Reply::Status(status))) => return Ok(*status),
                Response::Reply(1, Ok(other)) => return Err(unexpected(&other)),
                Response::Reply(1, Err(refusal)) | Response::Failed(refusal) | Response::Goodbye(refusal) => {
                    return Err(refusal.into());
                }
                _ => {}
            }
        }
        if greeted.stream.read_buf(&mut greeted.input).await.map_err(failed("read"))? == 0 {
            return Err(AttemptError::Hangup { address: address.to_owned() }.into());
        }
    }
}

/// A backup of the whole store that is being made, part by part. It belongs to one connection: where that is lost,
/// another backup must be begun.
#[derive(Debug)]
pub struct Backup {
    client: Client,
    session: Session,
    received: u64,
    ended: bool,
}

impl Backup {
    /// The next bytes of the archive; `None` behind the last ones.
    ///
    /// If the future is dropped, the backup cannot go on.
    ///
    /// # Errors
    /// Where the connection was lost, or the node cannot go on.
    pub async fn next_part(&mut self) -> Result<Option<Bytes>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        let from = self.received;
        let make = |request| Request::Admin(Admin { request, command: AdminCommand::Backup { from } });
        let alive = &self.client.alive;
        match alive.call_on(self.session, alive.deadline(), make).await? {
            Reply::BackupPart { last, bytes } => {
                self.received += bytes.len() as u64;
                self.ended = last;
                Ok(Some(bytes))
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl Client {
    /// Status of the master.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn status(&self) -> Result<NodeStatus, ClientError> {
        match self.administer(AdminCommand::Status).await? {
            Reply::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the master to let the other node take over. Answers the epoch that ends with it;
    /// [`master_after`](Client::master_after) waits for the next one.
    ///
    /// If the future is dropped, the switchover may take place all the same.
    ///
    /// # Errors
    /// Where there is no master, or no standby follows it; one that has just started is waited for, for a moment.
    pub async fn switchover(&self) -> Result<Epoch, ClientError> {
        let (_, master) = self.alive.connected(0, self.alive.deadline()).await?;
        let began = Instant::now();
        loop {
            let make = |request| Request::Admin(Admin { request, command: AdminCommand::Switchover });
            match self.alive.call(Repeat::Never, make).await {
                // A master that drains may close the connection before its answer is out.
                Ok(Reply::Done) | Err(ClientError::ConnectionLost) => return Ok(master.welcome.epoch),
                Ok(other) => return Err(unexpected(&other)),
                Err(ClientError::Refused(refusal))
                    if refusal.code == ErrorCode::NoStandby && began.elapsed() < STANDBY_WAIT =>
                {
                    tokio::time::sleep(by_chance(RETRY_WAIT)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// All topics, in the order of their names. Those that come and go meanwhile may be among them or not.
    ///
    /// # Errors
    /// Where there is no master.
    pub async fn topics(&self) -> Result<Vec<TopicInfo>, ClientError> {
        let mut all: Vec<TopicInfo> = Vec::new();
        loop {
            let after = all.last().map(|topic| topic.name.clone());
            match self.administer(AdminCommand::ListTopics { after }).await? {
                Reply::Topics { topics, more } => {
                    let more = more && !topics.is_empty();
                    all.extend(topics);
                    if !more {
                        return Ok(all);
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Makes a topic. It is no error if it exists with the same settings.
    ///
    /// # Errors
    /// Where the name is not one, it exists with other settings, or a limit is reached.
    pub async fn create_topic(&self, name: &str, settings: TopicSettings) -> Result<(), ClientError> {
        self.carry_out(AdminCommand::CreateTopic { name: name.to_owned(), settings }).await
    }

    /// Changes the settings of a topic; what it is not to keep any more goes at once.
    ///
    /// # Errors
    /// Where it does not exist, or the settings contradict each other.
    pub async fn change_topic(&self, name: &str, settings: TopicSettings) -> Result<(), ClientError> {
        self.carry_out(AdminCommand::ChangeTopic { name: name.to_owned(), settings }).await
    }

    /// Drops all messages of a topic, for all its groups. Answers how many. Consumers are left nothing of them.
    ///
    /// # Errors
    /// Where it does not exist. [`ClientError::ConnectionLost`] where that was lost before the answer: it may have been
    /// done, and is not tried again, since it would drop what was published meanwhile.
    pub async fn purge_topic(&self, name: &str) -> Result<u64, ClientError> {
        self.purge(AdminCommand::PurgeTopic { name: name.to_owned() }).await
    }

    /// Deletes a topic with its messages and groups.
    ///
    /// # Errors
    /// Where it does not exist. Where the connection was lost before the answer, an earlier try may have deleted it.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        self.carry_out(AdminCommand::DeleteTopic { name: name.to_owned() }).await
    }

    /// All groups, or those of one topic, the oldest first. Those that come and go meanwhile may be among them or not.
    ///
    /// # Errors
    /// Where the topic does not exist.
    pub async fn groups(&self, topic: Option<&str>) -> Result<Vec<GroupInfo>, ClientError> {
        let mut all: Vec<GroupInfo> = Vec::new();
        loop {
            let after = all.last().map(|group| group.group);
            let command = AdminCommand::ListGroups { topic: topic.map(str::to_owned), after };
            match self.administer(command).await? {
                Reply::Groups { groups, more } => {
                    let more = more && !groups.is_empty();
                    all.extend(groups);
                    if !more {
                        return Ok(all);
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Makes a group. It is no error if it exists with the same settings.
    ///
    /// # Errors
    /// Where a name is not one, the topic does not exist, or the group exists with other settings.
    pub async fn create_group(
        &self,
        topic: &str,
        name: &str,
        settings: GroupSettings,
        start: Start,
    ) -> Result<(), ClientError> {
        let (topic, name) = (topic.to_owned(), name.to_owned());
        self.carry_out(AdminCommand::CreateGroup { topic, name, settings, start }).await
    }

    /// Changes the settings of a group.
    ///
    /// # Errors
    /// Where it does not exist.
    pub async fn change_group(
        &self,
        topic: &str,
        name: &str,
        settings: GroupSettings,
    ) -> Result<(), ClientError> {
        let (topic, name) = (topic.to_owned(), name.to_owned());
        self.carry_out(AdminCommand::ChangeGroup { topic, name, settings }).await
    }

    /// Settles all that a group has not settled. Answers how many messages that were. Consumers are left nothing of
    /// them.
    ///
    /// # Errors
    /// Where it does not exist. [`ClientError::ConnectionLost`] as for [`purge_topic`](Self::purge_topic).
    pub async fn purge_group(&self, topic: &str, name: &str) -> Result<u64, ClientError> {
        let (topic, name) = (topic.to_owned(), name.to_owned());
        self.purge(AdminCommand::PurgeGroup { topic, name }).await
    }

    /// Sets a group to another place: what is before it is settled, and what is from there on and still in the topic is
    /// not. A time is exact. Consumers are left nothing of what they had.
    ///
    /// # Errors
    /// Where it does not exist, or has several topics or priorities and the place is an offset.
    /// [`ClientError::ConnectionLost`] where that was lost before the answer: it may have been done, and is not tried
    /// again, since it would undo what was settled meanwhile.
    pub async fn seek(&self, topic: &str, name: &str, to: Start) -> Result<(), ClientError> {
        let (topic, name) = (topic.to_owned(), name.to_owned());
        match self.administer_once(AdminCommand::Seek { topic, name, to }).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes a group with its progress.
    ///
    /// # Errors
    /// Where it does not exist. Where the connection was lost before the answer, an earlier try may have deleted it.
    pub async fn delete_group(&self, topic: &str, name: &str) -> Result<(), ClientError> {
        let (topic, name) = (topic.to_owned(), name.to_owned());
        self.carry_out(AdminCommand::DeleteGroup { topic, name }).await
    }

    /// All routes, in the order of their names. Those that come and go meanwhile may be among them or not.
    ///
    /// # Errors
    /// Where there is no master.
    pub async fn routes(&self) -> Result<Vec<RouteInfo>, ClientError> {
        let mut all: Vec<RouteInfo> = Vec::new();
        loop {
            let after = all.last().map(|route| route.name.clone());
            match self.administer(AdminCommand::ListRoutes { after }).await? {
                Reply::Routes { routes, more } => {
                    let more = more && !routes.is_empty();
                    all.extend(routes);
                    if !more {
                        return Ok(all);
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Makes a route, and the topics that it leads to where they are missing. It is no error if it exists like this.
    ///
    /// # Errors
    /// Where a name is not one, the topic that it comes from does not exist, the filter is wrong, messages would go
    /// round in a circle, another route has the name, or a limit is reached.
    pub async fn create_route(&self, route: RouteInfo) -> Result<(), ClientError> {
        self.carry_out(AdminCommand::CreateRoute { route }).await
    }

    /// Deletes a route. What it has passed on stays where it is.
    ///
    /// # Errors
    /// Where it does not exist. Where the connection was lost before the answer, an earlier try may have deleted it.
    pub async fn delete_route(&self, name: &str) -> Result<(), ClientError> {
        self.carry_out(AdminCommand::DeleteRoute { name: name.to_owned() }).await
    }

    /// What there is to know of a topic, its groups and their consumers.
    ///
    /// # Errors
    /// Where the topic does not exist.
    pub async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, ClientError> {
        match self.administer(AdminCommand::DescribeTopic { topic: topic.to_owned() }).await? {
            Reply::Description(description) => Ok(*description),
            other => Err(unexpected(&other)),
        }
    }

    /// Why a message is, or is not, being delivered to a group.
    ///
    /// # Errors
    /// Where topic or group do not exist.
    pub async fn explain(
        &self,
        topic: &str,
        position: Position,
        group: &str,
    ) -> Result<Explanation, ClientError> {
        let (topic, group) = (topic.to_owned(), group.to_owned());
        match self.administer(AdminCommand::Explain { topic, position, group }).await? {
            Reply::Explanation(explanation) => Ok(explanation),
            other => Err(unexpected(&other)),
        }
    }

    /// The slots with delayed messages of a topic, the one that is due first comes first. What is in them is read with
    /// [`browse_slot`](Self::browse_slot).
    ///
    /// # Errors
    /// Where the topic does not exist.
    pub async fn slots(&self, topic: &str) -> Result<Vec<SlotInfo>, ClientError> {
        match self.administer(AdminCommand::ListSlots { topic: topic.to_owned() }).await? {
            Reply::Slots { slots } => Ok(slots),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads at most `messages_max` delayed messages of a slot from `from` on, without any effect on them. The node
    /// may answer fewer; none means that there are none.
    ///
    /// # Errors
    /// Where the slot is not there any more.
    pub async fn browse_slot(
        &self,
        slot: TopicId,
        from: Offset,
        messages_max: u32,
    ) -> Result<Vec<Browsed>, ClientError> {
        Ok(self.browsed(AdminCommand::BrowseSlot { slot, from, messages_max }).await?.messages)
    }

    /// Drops delayed messages of a topic, which are named by their slots and offsets. Answers how many were still there;
    /// where the connection was lost before the answer, those that an earlier try has dropped are not among them.
    ///
    /// # Errors
    /// Where the topic does not exist, or there are more than [`CANCELLED_MAX`](crate::model::limits::CANCELLED_MAX).
    pub async fn cancel_delayed(
        &self,
        topic: &str,
        messages: Vec<(TopicId, Offset)>,
    ) -> Result<u64, ClientError> {
        let command = AdminCommand::CancelDelayed { topic: topic.to_owned(), messages };
        match self.administer(command).await? {
            Reply::Dropped { count } => Ok(count),
            other => Err(unexpected(&other)),
        }
    }

    /// Publishes dead letters once more, for the group in which each died or as `to` says, and takes them out of their
    /// topic, which is named by its number in the [list of topics](Self::topics). Each of them is in one of both places
    /// at any time. Those that cannot be replayed stay, and are counted by why. Where the connection was lost before
    /// the answer, those that an earlier try has replayed are told as gone.
    ///
    /// # Errors
    /// Where there is no such topic, the other topic neither exists nor may be made, there is no space, there are more
    /// than [`LETTERS_MAX`](crate::model::limits::LETTERS_MAX), or another group has too many gaps for one more.
    pub async fn replay_dead_letters(
        &self,
        topic: TopicId,
        offsets: Vec<Offset>,
        to: ReplayTo,
    ) -> Result<Replayed, ClientError> {
        match self.administer(AdminCommand::ReplayDeadLetters { topic, offsets, to }).await? {
            Reply::Replayed(replayed) => Ok(replayed),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes messages out of a topic, which is named by its number in the [list of topics](Self::topics), whichever of
    /// its groups have had them; those that are with a consumer stay. Answers how many that were; where the connection
    /// was lost before the answer, those that an earlier try has dropped are not among them.
    ///
    /// # Errors
    /// Where there is no such topic, or there are more than [`LETTERS_MAX`](crate::model::limits::LETTERS_MAX).
    pub async fn drop_messages(&self, topic: TopicId, offsets: Vec<Offset>) -> Result<u64, ClientError> {
        match self.administer(AdminCommand::DropMessages { topic, offsets }).await? {
            Reply::Dropped { count } => Ok(count),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the store of the master, in a language of its own: SQL in database mode. Nothing is changed.
    ///
    /// # Errors
    /// Where the store cannot be asked, the text cannot be understood or would change something, or a limit is
    /// reached.
    pub async fn query(&self, text: &str) -> Result<Table, ClientError> {
        match self.administer(AdminCommand::Query { text: text.to_owned() }).await? {
            Reply::Table(table) => Ok(table),
            other => Err(unexpected(&other)),
        }
    }

    /// Begins a backup of the whole store: an archive, as `store::archive` describes it, of what is confirmed now.
    ///
    /// If the future is dropped, nothing happens.
    ///
    /// # Errors
    /// Where there is no master.
    pub async fn backup(&self) -> Result<Backup, ClientError> {
        let (session, _) = self.alive.connected(0, self.alive.deadline()).await?;
        Ok(Backup { client: self.clone(), session, received: 0, ended: false })
    }

    async fn carry_out(&self, command: AdminCommand) -> Result<(), ClientError> {
        match self.administer(command).await? {
            Reply::Done | Reply::Topic { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn purge(&self, command: AdminCommand) -> Result<u64, ClientError> {
        match self.administer_once(command).await? {
            Reply::Dropped { count } => Ok(count),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for something that must not be done twice.
    async fn administer_once(&self, command: AdminCommand) -> Result<Reply, ClientError> {
        let make = |request| Request::Admin(Admin { request, command: command.clone() });
        self.alive.call(Repeat::Never, make).await
    }

    pub(super) async fn administer(&self, command: AdminCommand) -> Result<Reply, ClientError> {
        let make = |request| Request::Admin(Admin { request, command: command.clone() });
        self.alive.call(Repeat::Harmless, make).await
    }
}
