"""`python -m tests.gateway.tls PORT TO FOLDER`: TLS before a plain port of this machine, as a reverse proxy does it."""

import asyncio
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) for this machine; the certificate is its own authority."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if not key.exists():
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        made += ["-addext", names, "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(made, capture_output=True, check=True)
    return certificate, key


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one of both ends."""
    with suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(port: int, to: int, folder: Path) -> None:
    """Serve until killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(folder))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(copy(reader, inside[1]), copy(inside[0], writer))

    server = await asyncio.start_server(connected, "127.0.0.1", port, ssl=context)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
