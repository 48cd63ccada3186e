// @tus/server with its S3 store and its defaults: node server-s3.mjs BUCKET ENDPOINT PORT; credentials from AWS_… variables

import { S3Store } from "@tus/s3-store";
import { Server } from "@tus/server";

const [bucket, endpoint, port] = process.argv.slice(2);
const s3ClientConfig = { bucket, endpoint, region: process.env.AWS_REGION, forcePathStyle: true };
const server = new Server({ path: "/files", datastore: new S3Store({ s3ClientConfig }) });
server.listen({ host: "127.0.0.1", port: Number(port) });
