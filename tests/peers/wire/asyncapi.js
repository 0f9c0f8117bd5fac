// The AsyncAPI document as AsyncAPI's own parser sees it: no error, and every channel with its message.
const fs = require("fs");
const {createRequire} = require("module");
const [file, modules] = process.argv.slice(2);
const {Parser, fromFile} = createRequire(`${modules}/`)("@asyncapi/parser");

const channels = ["ack", "block", "command", "desired", "event", "fetch", "log", "metrics", "presence",
  "reported", "sketch"];

fromFile(new Parser(), file).parse().then(({document, diagnostics}) => {
  const faults = diagnostics.filter(({severity}) => severity < 2);
  for (const {code, path, message} of faults) console.error(`${code} at ${path.join("/")}: ${message}`);
  if (!document || faults.length > 0) process.exit(1);
  const found = document.allMessages().all().map((message) => message.id()).sort();
  const addresses = document.channels().all().map((channel) => channel.address()).sort();
  const wanted = channels.map((name) => `dunlin/v1/{fleet}/{device}/${name}`);
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  if (!same(found, channels) || !same(addresses, wanted)) {
    console.error("channels", addresses, "messages", found);
    process.exit(1);
  }
  // The parser must be one that notices: a message without its schema is a fault.
  const broken = fs.readFileSync(file, "utf8").replaceAll("#/components/schemas/Presence", "#/nowhere");
  return new Parser().parse(broken).then(({diagnostics}) => {
    if (!diagnostics.some(({severity}) => severity === 0)) {
      console.error("a broken document was accepted");
      process.exit(1);
    }
    console.log(`${file}: accepted, ${channels.length} channels`);
  });
});
