//! The sockets of the fake registry.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::{Shared, connection};

/// A listening socket and the thread that accepts from it.
pub(super) struct Listener {
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Accepts until [`stop`](Self::stop), a thread for each connection.
    pub(super) fn serve(listener: TcpListener, shared: Arc<Shared>, is_storage: bool) -> Listener {
        let address = listener.local_addr().expect("a bound listener has an address");
        let thread = std::thread::spawn(move || {
            let mut connections: Vec<JoinHandle<()>> = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                let number = {
                    let mut state = shared.lock();
                    if state.down {
                        break;
                    }
                    state.next_connection += 1;
                    let number = state.next_connection;
                    state.connections.extend(stream.try_clone().ok().map(|stream| (number, stream)));
                    number
                };
                // A registry that is asked for hours keeps nothing of connections that have ended.
                connections.retain(|connection| !connection.is_finished());
                let shared = shared.clone();
                connections.push(std::thread::spawn(move || {
                    connection::serve(stream, &shared, is_storage);
                    shared.lock().connections.remove(&number);
                }));
            }
            drop(listener);
            for connection in connections {
                let _ = connection.join();
            }
        });
        Listener { address, thread: Some(thread) }
    }

    /// Wakes the thread, which then sees that the registry is down.
    pub(super) fn stop(&self) {
        let _ = TcpStream::connect(self.address);
    }

    /// Waits for the thread and for those of its connections.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
