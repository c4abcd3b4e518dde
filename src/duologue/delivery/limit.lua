-- Shared head of the scripts that limit a rate: the generic cell rate algorithm (ITU-T I.371, virtual scheduling).
-- Returns 0 and counts the request, or the microseconds until it would be admitted and counts nothing.
local function limited_us(key, requests, window_us)
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local expected = math.max(tonumber(redis.call('GET', key) or nil) or now, now) + window_us / requests
  local wait = math.ceil(expected - window_us - now)
  if wait > 0 then return wait end
  redis.call('SET', key, string.format('%.0f', expected), 'PX', math.ceil((expected - now) / 1000))
  return 0
end
