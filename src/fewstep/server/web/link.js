// The socket of the live page: it comes back by itself, and takes chunks apart. The protocol is in docs/live-protocol.md.

const BACKOFF = [500, 1000, 2000, 4000, 8000]; // ms
const PROTOCOL = "fewstep.live";
export const CODES = { garbage: 1008, noKey: 4401 };

export class Link {
  constructor(heard) {
    this.heard = heard; // {open, closed(event, wait), text(message), chunk(header, blobs)}
    this.tries = 0;
    this.key = sessionStorage.getItem("fewstep-key");
  }

  connect() {
    clearTimeout(this.timer);
    const url = new URL("v1/live", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = this.socket = new WebSocket(url, this.key ? [PROTOCOL, `key.${this.key}`] : [PROTOCOL]);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") this.heard.text(JSON.parse(data));
      else this.heard.chunk(...unpack(data));
    };
    socket.onopen = () => this.heard.open();
    socket.onclose = (event) => {
      const again = event.code !== CODES.noKey && event.code !== CODES.garbage;
      const wait = again ? BACKOFF[Math.min(this.tries++, BACKOFF.length - 1)] * (0.8 + 0.4 * Math.random()) : null;
      if (again) this.timer = setTimeout(() => this.connect(), wait);
      this.heard.closed(event, wait);
    };
  }

  get open() { return this.socket?.readyState === WebSocket.OPEN; }

  send(message) { if (this.open) this.socket.send(JSON.stringify(message)); }

  // Now, if it is closed and waits to be tried again.
  wake() { if (!this.socket || this.socket.readyState === WebSocket.CLOSED) this.connect(); }

  useKey(key) {
    this.key = key;
    sessionStorage.setItem("fewstep-key", key);
    this.connect();
  }
}

function unpack(data) {
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let place = 4 + length;
  const blobs = header.sizes.map((size) => {
    const bytes = new Uint8Array(data, place, size);
    place += size;
    return new Blob([bytes], { type: `image/${header.format}` });
  });
  return [header, blobs];
}
