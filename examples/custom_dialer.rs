//! A dialer of your own: it logs in over whatever connection another dialer makes, says which failures are final,
//! and knows when a session that looks well is used up.
//! Run it with `cargo run --example custom_dialer`.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use fdpool::dial::{CheckContext, Tcp, Watch};
use fdpool::{Address, Budget, ConnResource, Dial, DialContext, DialError, Fitness, GetError};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How many questions the server answers in one session.
const QUESTIONS: u32 = 3;

/// Logs in with a token that is in a file, over the connections of `D`.
#[derive(Debug)]
struct LogIn<D> {
    inner: D,
    token: PathBuf,
}

/// A connection on which the server knows us.
#[derive(Debug)]
struct Session<S> {
    stream: BufReader<S>,
    questions_left: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    async fn ask(&mut self, question: &str) -> io::Result<String> {
        self.questions_left -= 1;
        self.stream.write_all(format!("{question}\n").as_bytes()).await?;
        self.line().await
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl<D: Dial> Dial for LogIn<D>
where
    D::Conn: AsyncRead + AsyncWrite + Unpin,
{
    type Conn = Session<D::Conn>;

    async fn dial(&self, address: &Address, cx: &DialContext) -> Result<Self::Conn, DialError> {
        // The file is closed before the connection is opened: one slot does for both. But reading it cannot be
        // cancelled: should this dial be dropped meanwhile, its slot stays taken until the file is closed.
        let (path, share) = (self.token.clone(), cx.share_slot());
        let read = move || {
            let token = std::fs::read_to_string(path);
            drop(share);
            token
        };
        let token = tokio::task::spawn_blocking(read).await.map_err(DialError::new)??;

        // From here on, the session owns the connection: dropped with this future, at whichever await.
        let stream = BufReader::new(self.inner.dial(address, cx).await?);
        let mut session = Session { stream, questions_left: QUESTIONS };
        session.stream.write_all(format!("LOGIN {}\n", token.trim()).as_bytes()).await?;
        let answer = session.line().await?;
        match answer.split_once(' ') {
            Some(("OK", _)) => Ok(session),
            // Nobody need try again with this token.
            Some(("NO", why)) => Err(DialError::new(format!("login refused: {why}")).permanent()),
            _ => Err(DialError::new(format!("login answered with {answer:?}"))),
        }
    }

    fn check(&self, session: &mut Self::Conn, cx: &CheckContext) -> Fitness {
        if session.questions_left == 0 {
            return Fitness::Closed;
        }
        if !session.stream.buffer().is_empty() {
            return Fitness::Dirty; // read already, where the inner dialer cannot see it
        }
        self.inner.check(session.stream.get_mut(), cx)
    }

    fn poll_idle(&self, session: &mut Self::Conn, cx: &mut Context<'_>) -> Poll<Fitness> {
        self.inner.poll_idle(session.stream.get_mut(), cx)
    }

    fn watch(&self, address: &Address) -> Option<Watch> {
        self.inner.watch(address)
    }

    fn is_current(&self, address: &Address, session: &Self::Conn) -> bool {
        self.inner.is_current(address, session.stream.get_ref())
    }

    fn close(&self, session: Self::Conn) {
        let mut stream = session.stream.into_inner();
        // Said if the socket takes it at once, and not said otherwise.
        let _ = Pin::new(&mut stream).poll_write(&mut Context::from_waker(Waker::noop()), b"BYE\n");
        self.inner.close(stream);
    }
}

/// Is busy at first; then answers a few questions to whoever knows the word.
async fn serve(listener: TcpListener) -> io::Result<()> {
    let (mut busy, _) = listener.accept().await?;
    busy.write_all(b"BUSY\n").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(session(stream));
    }
}

async fn session(mut stream: TcpStream) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    if lines.next_line().await?.as_deref() != Some("LOGIN sesame") {
        return write.write_all(b"NO unknown token\n").await;
    }
    write.write_all(b"OK come in\n").await?;
    for _ in 0..QUESTIONS {
        match lines.next_line().await? {
            Some(question) if question != "BYE" => {
                write.write_all(format!("{question}? yes\n").as_bytes()).await?
            }
            _ => return Ok(()),
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener));
    let token = std::env::temp_dir().join(format!("custom-dialer-{}", std::process::id()));
    std::fs::write(&token, "sesame\n")?;
    let budget = Budget::new(4);
    let log_in = || LogIn { inner: Tcp::default(), token: token.clone() };
    let resource = ConnResource::builder(address, log_in()).budget(&budget).build();

    let mut failures = 0;
    for question in ["one", "two", "three", "four"] {
        let mut session = loop {
            match resource.get().await {
                Err(GetError::Dial { source, .. }) if !source.is_permanent() && failures < 3 => {
                    println!("{source}; once more");
                    failures += 1;
                }
                result => break result?,
            }
        };
        println!("{}", session.ask(question).await?);
        session.put();
    }
    let stats = resource.stats();
    println!("{} dials, {} of them in vain, {} reused", stats.dials, stats.dial_failures, stats.reused);
    assert_eq!((stats.dials, stats.dial_failures, stats.reused), (3, 1, 2), "three questions to a session");

    std::fs::write(&token, "abracadabra\n")?;
    let stranger = ConnResource::builder(address, log_in()).budget(&budget).build();
    let refused = stranger.get().await.err().ok_or("let in with a wrong token")?;
    std::fs::remove_file(&token)?;
    println!("{refused}");
    assert!(matches!(refused, GetError::Dial { source, .. } if source.is_permanent()));
    Ok(())
}
