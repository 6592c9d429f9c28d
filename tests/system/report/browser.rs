//! A headless Chromium, which the tests control with the DevTools protocol.
//!
//! The protocol uses a pair of pipes (`--remote-debugging-pipe`: JSON messages that end in a zero
//! byte, on descriptors 3 and 4). A shell connects the child's standard input and output to these
//! descriptors.

use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};
use virt_bmap_testutil::tools;

/// The time limit for everything that the browser does.
const DEADLINE: Duration = Duration::from_secs(120);

/// A browser with one page.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    last: u64,
    /// The complaints of the page: messages on the console, exceptions, violations of its policy.
    pub(crate) complaints: Vec<String>,
    /// The addresses of everything that was loaded.
    pub(crate) requests: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser with an empty page of `width` by `height` pixels.
    pub(crate) fn start(width: u32, height: u32) -> Self {
        // The profile is kept in memory if possible, since it has many small files.
        let profile = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut child = tools::command("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null"])
            .arg(tools::find("chromium").unwrap())
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ])
            .args([
                "--no-first-run",
                "--disable-extensions",
                "--disable-background-networking",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let (sender, from) = channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while output.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let (complaints, requests) = (Vec::new(), Vec::new());
        let mut browser =
            Self { child, to, from, session: None, last: 0, complaints, requests, _profile: profile };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attached =
            browser.call("Target.attachToTarget", &json!({"targetId": target["targetId"], "flatten": true}));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Runtime", "Log", "Page", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        browser.call("Emulation.setDeviceMetricsOverride", &metrics);
        browser.prefer("light");
        browser
    }

    /// Sets the colour scheme that the system prefers.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &features);
    }

    /// Opens a page and waits until it is ready.
    pub(crate) fn open(&mut self, page: &Path) {
        self.call("Page.navigate", &json!({"url": format!("file://{}", page.display())}));
        self.wait_for("document.body && document.body.dataset.state === 'ready'");
        self.settle();
    }

    /// Waits until an expression is true.
    pub(crate) fn wait_for(&mut self, expression: &str) {
        let begin = Instant::now();
        while self.eval(expression) != Value::Bool(true) {
            assert!(begin.elapsed() < DEADLINE, "never true: {expression}; {:?}", self.complaints);
            thread::sleep(Duration::from_millis(30));
        }
    }

    /// Waits until the browser has drawn everything.
    pub(crate) fn settle(&mut self) {
        self.eval(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))",
        );
    }

    /// The value of an expression. The expression may be a promise.
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", &parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// The value of an expression, which must be a string.
    pub(crate) fn text(&mut self, expression: &str) -> String {
        let value = self.eval(expression);
        value.as_str().unwrap_or_else(|| panic!("{expression}: {value}")).to_owned()
    }

    /// The value of an expression, which must be a number.
    pub(crate) fn number(&mut self, expression: &str) -> f64 {
        let value = self.eval(expression);
        value.as_f64().unwrap_or_else(|| panic!("{expression}: {value}"))
    }

    /// Presses and releases a key.
    pub(crate) fn key(&mut self, key: &str) {
        let (text, number) = match key {
            "Enter" => ("\r", 13),
            "Tab" => ("", 9),
            key if key.chars().count() == 1 => (key, 0),
            _ => ("", 0),
        };
        for kind in ["keyDown", "keyUp"] {
            let event =
                json!({"type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": number});
            self.call("Input.dispatchKeyEvent", &event);
        }
        self.settle();
    }

    /// Types a text into the element that has the focus.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// Sends a mouse event: `mouseMoved`, `mousePressed`, `mouseReleased`, `mouseWheel`.
    pub(crate) fn mouse(&mut self, kind: &str, x: f64, y: f64, wheel: f64) {
        let button = if matches!(kind, "mousePressed" | "mouseReleased") { "left" } else { "none" };
        let event = json!({"type": kind, "x": x, "y": y, "button": button, "clickCount": 1, "deltaX": 0, "deltaY": wheel});
        self.call("Input.dispatchMouseEvent", &event);
        self.settle();
    }

    /// Clicks at a point.
    pub(crate) fn click(&mut self, x: f64, y: f64) {
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            self.mouse(kind, x, y, 0.0);
        }
    }

    /// Sends a touch event: `touchStart`, `touchMove`, `touchEnd`.
    pub(crate) fn touch(&mut self, kind: &str, points: &[(f64, f64)]) {
        let points: Vec<_> =
            points.iter().zip(0..).map(|((x, y), id)| json!({"x": x, "y": y, "id": id})).collect();
        self.call("Input.dispatchTouchEvent", &json!({"type": kind, "touchPoints": points}));
        self.settle();
    }

    /// Fails if the page has complained, or has loaded anything but itself.
    pub(crate) fn assert_quiet(&mut self) {
        self.settle();
        assert!(self.complaints.is_empty(), "{:?}", self.complaints);
        let foreign = |url: &&String| !url.starts_with("file:///") && *url != "about:blank";
        assert!(!self.requests.iter().any(|url| foreign(&url)), "{:?}", self.requests);
    }

    /// Calls a method of the protocol, and returns its answer.
    pub(crate) fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(b"\0").unwrap();
        self.to.flush().unwrap();
        loop {
            let mut message = self.from.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("{method}: {e}"));
            if message["id"] == self.last {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        match event["method"].as_str() {
            // Only the tests read pixels. The page never does.
            Some("Log.entryAdded") if event.to_string().contains("willReadFrequently") => {}
            Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded") => {
                self.complaints.push(event["params"].to_string());
            }
            Some("Network.requestWillBeSent") => {
                self.requests.extend(event["params"]["request"]["url"].as_str().map(str::to_owned));
            }
            _ => {}
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.session = None;
        let message = json!({"id": self.last + 1, "method": "Browser.close"});
        let _ = self.to.write_all(format!("{message}\0").as_bytes());
        let begin = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if begin.elapsed() > Duration::from_secs(10) {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
