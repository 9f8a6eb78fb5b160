//! Which incidents become Events of their own and which only count: the same again within some minutes is one Event
//! with a count, as client-go has it. Keeps no clock and asks nobody.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use super::recorder::{Incident, Recorded};

/// Who reports, to every reader of Events.
const CONTROLLER: &str = "kube-proxy";
/// What does not happen again for this long is over; and how often the count of what goes on is written.
const QUIET: Duration = Duration::from_mins(6);
/// How many kinds of incidents are remembered: more than a node has health check ports would be a mistake somewhere.
const REMEMBERED: usize = 256;
/// Of a note; the API server takes no more.
const LONGEST_NOTE: usize = 1024;
/// Of an object's name.
const LONGEST_NAME: usize = 253;

/// What to write to the API server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    Create(Event),
    /// Its series is new; there may be no such Event any more.
    Count(Event),
}

impl Write {
    pub(crate) fn event(&self) -> &Event {
        let (Self::Create(event) | Self::Count(event)) = self;
        event
    }
}

/// What was written in the last minutes.
#[derive(Debug)]
pub(crate) struct Series {
    /// `reportingInstance` of all Events.
    instance: String,
    known: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    incident: Incident,
    event: Event,
    seen: Instant,
    written: Instant,
    /// Does the server have the last count?
    is_told: bool,
}

impl Series {
    /// `host`: the name this machine has itself.
    pub(crate) fn new(host: &str) -> Self {
        Self { instance: format!("{CONTROLLER}-{host}"), known: Vec::new() }
    }

    /// Takes an incident in. What is to be written about it, if anything.
    pub(crate) fn take(&mut self, recorded: Recorded, now: Instant) -> Option<Write> {
        let Recorded { incident, at } = recorded;
        let Some(known) = self.known.iter_mut().find(|known| known.incident == incident) else {
            let event = self.event(&incident, at);
            if self.known.len() >= REMEMBERED {
                self.known.remove(0);
            }
            self.known.push(Known { incident, event: event.clone(), seen: now, written: now, is_told: true });
            return Some(Write::Create(event));
        };
        let count = known.event.series.as_ref().map_or(1, |series| series.count) + 1;
        known.event.series = Some(EventSeries { count, last_observed_time: MicroTime(at) });
        known.seen = now;
        known.is_told = count == 2 || now.duration_since(known.written) >= QUIET;
        known.is_told.then(|| {
            known.written = now;
            Write::Count(known.event.clone())
        })
    }

    /// When something is over next.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.known.iter().map(|known| known.seen + QUIET).min()
    }

    /// Forgets what is over. What is to be written about it: last counts.
    pub(crate) fn end(&mut self, now: Instant) -> Vec<Write> {
        let over = self.known.extract_if(.., |known| now.duration_since(known.seen) >= QUIET);
        over.filter(|known| !known.is_told).map(|known| Write::Count(known.event)).collect()
    }

    /// Could not be written: the next one is a first one.
    pub(crate) fn forget(&mut self, event: &Event) {
        self.known.retain(|known| known.event.metadata.name != event.metadata.name);
    }

    fn event(&self, incident: &Incident, at: Timestamp) -> Event {
        let regarding = incident.regarding.clone();
        let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".into());
        let name = name(regarding.name.as_deref().unwrap_or_default(), at);
        let note = cut(&incident.note, LONGEST_NOTE);
        Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            event_time: Some(MicroTime(at)),
            reporting_controller: Some(CONTROLLER.into()),
            reporting_instance: Some(cut(&self.instance, 128).into()),
            action: Some(incident.action.into()),
            reason: Some(incident.reason.into()),
            regarding: Some(regarding),
            note: (!note.is_empty()).then(|| note.into()),
            type_: Some(incident.severity.as_str().into()),
            ..Event::default()
        }
    }
}

/// `<object>.<nanoseconds>`, as client-go names Events; the object's name is cut where both are too long.
fn name(object: &str, at: Timestamp) -> String {
    let suffix = format!(".{:x}", at.as_nanosecond());
    let object = cut(object, LONGEST_NAME - suffix.len()).trim_end_matches(['.', '-']);
    format!("{object}{suffix}")
}

/// The first `length` bytes, or a character less.
fn cut(text: &str, length: usize) -> &str {
    &text[..text.floor_char_boundary(length)]
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::super::recorder::Severity;
    use super::*;

    const AT: Timestamp = Timestamp::UNIX_EPOCH;

    fn recorded(note: &str) -> Recorded {
        let regarding = ObjectReference { name: Some("web".into()), namespace: Some("shop".into()), ..Default::default() };
        let incident = Incident { regarding, severity: Severity::Warning, reason: "R", action: "A", note: note.into() };
        Recorded { incident, at: AT }
    }

    fn counted(write: Option<Write>) -> Option<i32> {
        match write? {
            Write::Create(event) => Some(event.series.map_or(1, |series| series.count)),
            Write::Count(event) => Some(event.series.unwrap().count),
        }
    }

    #[test]
    fn repeats_are_one_event_with_a_count_that_is_told_now_and_then() {
        let (mut series, begun) = (Series::new("h"), Instant::now());
        let minute = |number| begun + Duration::from_mins(number);
        let told = [0, 1, 2, 3, 6, 8, 12].map(|number| counted(series.take(recorded("x"), minute(number))));
        assert_eq!(told, [Some(1), Some(2), None, None, None, Some(6), None]);
        assert_eq!(series.due(), Some(minute(18)));
        assert_eq!(series.end(minute(17)), []);
        assert_eq!(series.end(minute(18)).into_iter().map(|write| counted(Some(write))).collect::<Vec<_>>(), [Some(7)]);
        assert_eq!((series.due(), series.end(minute(30))), (None, vec![]));
        assert_eq!(counted(series.take(recorded("x"), minute(31))), Some(1), "after a quiet time it is a new one");
    }

    #[test]
    fn another_cause_is_another_event() {
        let (mut series, now) = (Series::new("h"), Instant::now());
        for cause in ["in use", "not permitted"] {
            assert!(matches!(series.take(recorded(cause), now), Some(Write::Create(_))), "{cause}");
        }
        assert!(matches!(series.take(recorded("in use"), now), Some(Write::Count(_))));
    }

    #[test]
    fn what_could_not_be_written_begins_anew() {
        let (mut series, now) = (Series::new("h"), Instant::now());
        let Some(Write::Create(event)) = series.take(recorded("x"), now) else { panic!("a first one") };
        series.forget(&event);
        assert!(matches!(series.take(recorded("x"), now), Some(Write::Create(_))));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut series, now) = (Series::new("h"), Instant::now());
        (0..1000).for_each(|number| drop(series.take(recorded(&number.to_string()), now)));
        assert_eq!(series.known.len(), REMEMBERED);
    }

    #[test]
    fn names_and_notes_are_not_too_long_for_the_server() {
        let at = Timestamp::from_nanosecond(0x18ea_4021_1714_7d95).unwrap();
        assert_eq!(name("node1", at), "node1.18ea402117147d95");
        let long = name(&format!("{}-{}", "n".repeat(235), "x".repeat(17)), at);
        assert_eq!(long, format!("{}.18ea402117147d95", "n".repeat(235)));
        let (mut series, now) = (Series::new(&"h".repeat(300)), Instant::now());
        let Some(Write::Create(event)) = series.take(recorded(&"é".repeat(600)), now) else { panic!("a first one") };
        assert_eq!((event.note.unwrap().len(), event.reporting_instance.unwrap().len()), (1024, 128));
    }
}
