// node-routeros speaks to the simulator, with tags, and finds the login style by itself.
// Arguments: port, login style, and `slow` to run five commands at once.
const assert = require("node:assert");
const { RouterOSAPI } = require("node-routeros");

const port = Number(process.argv[2]);
const slow = process.argv.includes("slow");
const session = (password) =>
  new RouterOSAPI({ host: "127.0.0.1", port, user: "admin", password, timeout: 20 });

const refused = async (promise, text) => {
  const error = await promise.then(
    () => assert.fail(`not refused: ${text}`),
    (e) => e,
  );
  assert.ok(error.message.includes(text), error.message);
};

const main = async () => {
  const api = session("s3cret");
  await api.connect();
  if (slow) {
    await Promise.all([1, 2, 3, 4, 5].map(() => api.write("/queue/simple/print")));
    await api.close();
    return;
  }
  const [added] = await api.write("/queue/simple/add", [
    "=name=q1",
    "=target=10.88.0.15",
    "=max-limit=10M/2M",
  ]);
  assert.strictEqual(added.ret, "*1");
  const rows = await api.write("/queue/simple/print", ["?name=q1"]);
  assert.strictEqual(rows.length, 1);
  assert.strictEqual(rows[0]["max-limit"], "10000000/2000000");
  assert.strictEqual(rows[0].target, "10.88.0.15/32");
  await refused(api.write("/queue/simple/add", ["=name=q1"]), "already have such name");
  await refused(api.write("/queue/simple/remove", ["=.id=*99"]), "no such item");
  await refused(api.write("/queue/simple/add", ["=frob=1"]), "unknown parameter frob");
  for (const size of [100, 118, 119, 16374, 16375, 70000, 3000000]) {
    const text = "x".repeat(size);
    await api.write("/queue/simple/set", ["=.id=*1", `=comment=${text}`]);
    const [row] = await api.write("/queue/simple/print", ["?name=q1", "=.proplist=comment"]);
    assert.strictEqual(row.comment.length, size);
  }
  // It cannot take a reply without rows in every version, so one row stays until the end.
  await api.write("/queue/simple/remove", ["=.id=q1"]);
  await api.close();
};

main().then(
  () => {
    console.log("ok");
    process.exit(0);
  },
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
