//! What lies below `/debug/` with `--profiling`: the log's verbosity, which can be set, and the profiles of Go, of
//! which there are none here.

use std::sync::Arc;

use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::Pages;
use crate::serve::http::{self, Reply, Response, TEXT, not_found};

/// As kube-proxy writes it here, without a charset.
const PLAIN: &str = "text/plain";
const HTML: &str = "text/html; charset=utf-8";

const FLAGS: &str = "<html>\n<head>\n<title>/debug/flags/</title>\n</head>\n<body>\n/debug/flags/<br>\n<br>\nflags:<br>\n\
                     <a href=\"/debug/flags/v\">v</a> (PUT a level)<br>\n</body>\n</html>\n";
const PROFILES: &str = "pprof shows the profiles of Go programs, and this proxy is none (it is sluice, in Rust).\n\
                        What there is instead:\n\
                        /metrics        durations of syncs and their parts, memory, CPU time\n\
                        /statusz        version and uptime\n\
                        /debug/flags/v  PUT a level: 4 logs each step, 8 everything\n\
                        perf            `perf record -g -p PID` on the node finds the program's functions by name\n";

pub(super) fn answer(pages: &Arc<Pages>, head: &Parts) -> Reply {
    let path = head.uri.path();
    let is_below = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match path {
        "/debug/flags/v" if head.method == Method::PUT => {
            let pages = Arc::clone(pages);
            Reply::AfterBody(Box::new(move |body| set_verbosity(&pages, body)))
        }
        "/debug/flags/v" => line(StatusCode::NOT_ACCEPTABLE, "unsupported http method").into(),
        _ if is_below("/debug/flags") => http::plain(StatusCode::OK, HTML, FLAGS).into(),
        _ if is_below("/debug/pprof") => http::answer(StatusCode::NOT_IMPLEMENTED, TEXT, PROFILES).into(),
        _ => not_found().into(),
    }
}

fn set_verbosity(pages: &Pages, body: &[u8]) -> Response {
    let text = String::from_utf8_lossy(body);
    match level(&text) {
        Ok(level) => {
            (pages.set_verbosity)(level);
            line(StatusCode::OK, &format!("successfully set klog.logging.verbosity to {text}"))
        }
        Err(why) => {
            let cause = format!("strconv.ParseInt: parsing {text:?}: {why}");
            line(StatusCode::BAD_REQUEST, &format!("failed set klog.logging.verbosity {text}: {cause}"))
        }
    }
}

/// Levels are 32 bits wide in kube-proxy; above 255 there is no more to say, and below 0 no less.
fn level(text: &str) -> Result<u8, &'static str> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    match text.parse::<i32>() {
        Ok(level) => Ok(u8::try_from(level.max(0)).unwrap_or(u8::MAX)),
        Err(error) if matches!(error.kind(), PosOverflow | NegOverflow) => Err("value out of range"),
        Err(_) => Err("invalid syntax"),
    }
}

fn line(status: StatusCode, text: &str) -> Response {
    http::plain(status, PLAIN, format!("{text}\n"))
}
