// Clicks through the coordinator's page: node clicks.mjs SCENE URL FOLDER [KEY]. Screenshots go to FOLDER; ends with 0 if all is
// as it should be. CHROMIUM names the browser.
import { strict as assert } from "node:assert";
import { chromium } from "playwright-core";

const [scene, url, folder, key] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const PATIENCE = { timeout: 60_000 };

const open = async (options = {}, address = url) => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light", ...options });
  const page = await context.newPage();
  page.asked = [];
  page.on("request", (request) => page.asked.push(request.url()));
  page.on("pageerror", (error) => { throw error; });
  // Answers are drawn by chance, and a small model may not find an end: they get one. Who wants another length sets `length`.
  page.length = { max_tokens: 40 };
  await page.route("**/v1/chat/completions", (route) => {
    route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), ...page.length }) });
  });
  await page.goto(address);
  return page;
};
const ready = (page) => page.locator("#state", { hasText: "ready" }).waitFor(PATIENCE);
const picture = (page, name) => page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
const ask = async (page, text) => {
  await page.fill("#message", text);
  await page.click("#send");
};
const answered = (page) => page.locator("#log footer", { hasText: "tok/s" }).last().waitFor(PATIENCE);

// A request from elsewhere that runs for as long as somebody reads it: no token may end it.
const post = (path, body) => fetch(`${url}${path}`, {
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
});
const longRequest = () => post("/v1/chat/completions", {
  messages: [{ role: "user", content: "Tell a very long story." }], max_tokens: 900, stream: true, ignore_eos: true,
});

const scenes = {
  // The pipeline at work, a chat, a request cancelled by a click, tabs by the keyboard.
  async load() {
    const page = await open();
    await ready(page);
    assert.equal(await page.locator("#pipeline .stage:not(.end)").count(), 2);
    await page.evaluate(() => document.fonts.ready);
    await ask(page, "Name three primary colours.");
    await answered(page);
    assert.ok((await page.locator("#log article").last().innerText()).length > 10);

    const responses = await Promise.all([longRequest(), longRequest()]);
    const button = page.getByRole("button", { name: /Cancel request/ });
    await button.first().waitFor(PATIENCE);
    await page.locator("#pipeline .badge", { hasText: "bottleneck" }).waitFor(PATIENCE);
    await page.waitForTimeout(2500);
    await picture(page, "load");
    await button.first().click();
    await page.locator("#requests", { hasText: /failed|cancelled/ }).waitFor(PATIENCE);
    const texts = await Promise.all(responses.map((response) => response.text().catch(() => "")));
    assert.ok(texts.some((text) => text.includes("cancelled at the server")), "the client hears of it");

    await page.focus("#tab-curl");
    await page.keyboard.press("ArrowRight");
    assert.match(await page.innerText("#snippet"), /from openai import OpenAI/);
    // What is to be stopped must not end by itself.
    page.length = { ignore_eos: true };
    await ask(page, "Tell a very long story about a ship.");
    await page.locator("#stop").click(PATIENCE);
    await page.locator("#log footer", { hasText: "stopped" }).waitFor(PATIENCE);
    const origin = new URL(url).origin;
    assert.ok(page.asked.every((asked) => asked.startsWith(origin) || asked.startsWith("data:")), page.asked.join(" "));
  },
  // A worker is gone, on a phone and in the dark.
  async lost() {
    const page = await open({ colorScheme: "dark" });
    await ready(page);
    await ask(page, "What is the capital of France?");
    await answered(page);
    await picture(page, "lost-dark");
    const phone = await open({ viewport: { width: 375, height: 800 }, isMobile: true });
    await ready(phone);
    await ask(phone, "Hello!");
    await answered(phone);
    const width = await phone.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= 375, `the page is ${width} pixels wide`);
    await picture(phone, "phone");
  },
  // Two workers ask. Whoever opens the page by the owner's link admits the first and refuses the second; others only see them.
  async asking() {
    const [first, second] = key.split(" ");
    const visitor = await open({}, new URL(url).origin);
    await visitor.locator("#askers li").nth(1).waitFor(PATIENCE);
    // They stand in the order of their coming.
    for (const [name, code] of [["attic", first], ["cellar", second]]) {
      assert.match(await visitor.locator("#askers li", { hasText: name }).innerText(), new RegExp(code));
    }
    assert.equal(await visitor.locator("#askers button").count(), 0);
    assert.match(await visitor.innerText("#asking"), /coordinator admit/);
    await picture(visitor, "asking-visitor");
    const page = await open();
    await page.locator("#askers li").nth(1).waitFor(PATIENCE);
    assert.ok(!page.url().includes("owner"), "the key stays in no address");
    await picture(page, "asking");
    await page.getByRole("button", { name: `Admit attic, code ${first}` }).click();
    await page.getByRole("button", { name: `Refuse cellar, code ${second}` }).click();
    await page.locator("#asking").waitFor({ state: "hidden", ...PATIENCE });
    await ready(page);
    assert.match(await page.innerText("#pipeline"), /attic/);
    await page.reload();
    await ready(page);
    const phone = await open({ viewport: { width: 375, height: 800 }, isMobile: true, colorScheme: "dark" });
    await ready(phone);
    await phone.evaluate((codes) => showAsking({ open: true, asking: codes.map((code) => ({ name: "a-worker-with-a-long-name.example", code, address: "192.168.100.100:54321", namesake: true })) }), [first, second]);
    const width = await phone.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= 375, `the page is ${width} pixels wide`);
    await picture(phone, "asking-phone");
  },
  // What the page shows of a server that it has met in the middle, lost, and met again after a restart. The server's words are ours.
  async again() {
    const known = await (await fetch(`${url}/api/status`)).json();
    const slot = (number) => ({ id: number, id_task: number, is_processing: true, n_prompt_tokens: 5, params: { n_predict: 9 } });
    const started = (number) => `event: request_started\ndata: {"request":${number},"prompt_tokens":5,"max_tokens":9}\n\n`;
    // Each connection: the status, then events, then the end; and what runs meanwhile.
    const connections = [
      { uptime_s: 1000, events: started(8), slots: [slot(7), slot(8)] },
      { uptime_s: 1001, events: "", slots: [slot(7)] },
      { uptime_s: 3, events: "", slots: [slot(2)] },
    ];
    let met = 0;
    const page = await open({}, "about:blank");
    await page.route("**/api/events", (route) => {
      const { uptime_s, events } = connections[Math.min(met, connections.length - 1)];
      met += 1;
      if (met > connections.length) return route.abort();
      route.fulfill({ contentType: "text/event-stream", body: `data: ${JSON.stringify({ ...known, uptime_s, waiting: 0 })}\n\n${events}` });
    });
    await page.route("**/slots", (route) => route.fulfill({ json: connections[Math.max(0, met - 1)].slots }));
    await page.goto(url);
    const rows = () => page.getByRole("button", { name: /Cancel request/ }).evaluateAll((all) => all.map((one) => one.getAttribute("aria-label").slice(15)).join());
    const see = (wanted) => page.waitForFunction((wanted) => [...document.querySelectorAll("#requests button")].map((one) => one.getAttribute("aria-label").slice(15)).sort().join() === wanted, wanted, PATIENCE);
    for (const wanted of ["7,8", "7", "2"]) await see(wanted);
    assert.equal(await rows(), "2");

    // A conversation that begins anew during an answer has nothing of that.
    await page.route("**/v1/chat/completions", async (route) => {
      page.sent = route.request().postDataJSON().messages;
      if (page.sent[0].content === "old") await new Promise((resolve) => setTimeout(resolve, 60_000));
      else route.fulfill({ contentType: "text/event-stream", body: 'data: {"choices":[{"delta":{"content":"yes"}}]}\n\ndata: [DONE]\n\n' });
    });
    await ask(page, "old");
    await page.waitForFunction(() => running !== null, null, PATIENCE);
    await page.evaluate(() => { document.querySelector("#log article:last-child").replaceChildren(Object.assign(document.createElement("span"), { textContent: "half" })); });
    await page.click("#clear");
    await page.waitForFunction(() => running === null, null, PATIENCE);
    await ask(page, "new");
    await page.locator("#log article", { hasText: "yes" }).waitFor(PATIENCE);
    assert.deepEqual(page.sent, [{ role: "user", content: "new" }]);
    await page.evaluate(() => sessionStorage.setItem("qmesh-api-key", "k"));
    await page.click("#tab-python");
    assert.match(await page.innerText("#snippet"), /api_key="…"/);
  },
  // It asks for the key once, and knows it from then on.
  async key() {
    const page = await open();
    await page.locator("#key-dialog[open]").waitFor(PATIENCE);
    await page.fill("#key", key);
    await page.keyboard.press("Enter");
    await ready(page);
    await page.reload();
    await ready(page);
    await picture(page, "key");
  },
};

try {
  await scenes[scene]();
} finally {
  await browser.close();
}
